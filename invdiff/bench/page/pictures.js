// Pictures

const [X, STD, Y, TRUTH] = [0, 1, 2, 3];
const view = { zoom: 1, x: 0, y: 0, cut: 50 };

function here() {
  const [task, image] = [Number($("picture-task").value), Number($("picture-image").value)];
  return D.runs.filter((run) => run[1] === task && run[0] === image && state.methods.has(run[2])).sort((a, b) => a[2] - b[2]);
}

// What yellow stands for in the pictures of uncertainty: the largest white of those shown
const brightest = (list) => Math.max(...list.map((run) => run[9] ?? 0));

const picture = (run, kind) => { const i = run?.[8]?.[kind]; return i == null ? null : D.pictures[i]; };
const shared = (list, kind) => list.map((run) => picture(run, kind)).find((p) => p != null) ?? null;

function content(layer, list, what, mode) {
  const run = what.startsWith("run") ? list.find((r) => `run${r[2]}.${r[3]}` === what) : null;
  const truth = shared(list, TRUTH);
  const kind = run && mode === "std" ? STD : X;
  const source = what === "truth" ? truth : what === "y" ? shared(list, Y) : picture(run, kind);
  const images = source == null ? [] : run && mode === "error" ? (truth == null ? [] : [source, truth]) : [source];
  layer.replaceChildren(...images.map((src, i) => make("img", { src, alt: i ? "" : words(list, what, mode), draggable: "false" })));
  layer.classList.toggle("heat", Boolean(run) && mode === "std");
  layer.style.setProperty("--level", run && mode === "std" && run[9] ? run[9] / brightest(list) : 1);
  layer.classList.toggle("error", Boolean(run) && mode === "error");
  return images.length > 0;
}

function words(list, what, mode) {
  if (what === "truth") return "truth";
  if (what === "y") return "measurement";
  const run = list.find((r) => `run${r[2]}.${r[3]}` === what);
  return run ? runName(list, run) + { x: "", std: ", uncertainty", error: ", error" }[mode] : "";
}

const runName = (list, run) => D.methods[run[2]] + (list.some((r) => r[2] === run[2] && r !== run) ? `, seed ${run[3]}` : "");

function choices() {
  const list = here();
  const entries = [["y", "measurement"], ["truth", "truth"], ...list.filter((r) => r[4] === OK).map((r) => [`run${r[2]}.${r[3]}`, runName(list, r)])];
  const keep = (select, fallback) => (entries.some(([v]) => v === select.value) ? select.value : fallback);
  const q = D.measures.findIndex((m) => m.name === "psnr");
  const scored = list.filter((r) => r[4] === OK && picture(r, X)).sort((a, b) => (b[7][q] ?? 0) - (a[7][q] ?? 0));
  options($("left"), entries, keep($("left"), "y"));
  options($("right"), entries, keep($("right"), scored.length ? `run${scored[0][2]}.${scored[0][3]}` : "truth"));
  gallery();
}

function gallery() {
  const list = here(), mode = $("view").value, right = $("right").value;
  const there = [content($("layer-left"), list, $("left").value, mode), content($("layer-right"), list, right, mode)];
  $("tag-left").textContent = words(list, $("left").value, mode);
  $("tag-right").textContent = words(list, right, mode);
  $("stage-empty").hidden = there.some(Boolean);
  const first = $("stage").querySelector("img");
  if (first) first.decode().then(() => { if (first.naturalHeight) $("stage").style.aspectRatio = `${first.naturalWidth} / ${first.naturalHeight}`; }, () => {});
  about(list, right);
  const scores = [...state.columns].filter((k) => !D.measures[k].cost).sort((a, b) => a - b).slice(0, 2);
  const cards = [["truth", "truth", null], ["y", "measurement", null], ...list.map((r) => [`run${r[2]}.${r[3]}`, runName(list, r), r])].map(([what, name, run]) => {
    const ok = !run || run[4] === OK;
    const layer = make("span", { class: "layer" });
    const filled = ok && content(layer, list, what, mode);
    const text = run && ok ? scores.map((k) => make("small", {}, `${D.measures[k].title} ${number(run[7][k], 0)}`)) : [];
    const lack = !ok ? (run[4] === FAILED ? "failed" : "refused") : run && mode === "std" ? "no uncertainty" : "no picture";
    return make("button", { type: "button", class: "card", "aria-pressed": String(what === right), disabled: !ok, title: run && !ok ? D.texts[run[6]] : name, onclick: () => {
      $("right").value = what;
      gallery();
    } }, filled ? layer : make("span", { class: "none" }, lack), make("span", { class: "words" }, make("b", {}, name), ...text));
  });
  $("grid").replaceChildren(...cards);
}

function about(list, what) {
  const box = $("about");
  const run = list.find((r) => `run${r[2]}.${r[3]}` === what);
  if (!run) {
    box.replaceChildren(make("p", { class: "hint" }, list.length ? "Choose a strategy on the right, or a card below, for its scores." : "No run of the chosen strategies."));
    return;
  }
  const white = brightest(list);
  const spread = $("view").value === "std" && white ? make("p", { class: "hint" }, `Uncertainty: black is 0, yellow a standard deviation of ${number(white, 0)}, the same for all strategies of this picture.`) : "";
  const lines = D.measures.map((m, k) => [m, run[7][k]]).filter(([, value]) => value != null)
    .map(([m, value]) => make("tr", {}, make("th", { scope: "row" }, title(m)), make("td", {}, number(value, 0)), make("td", { class: "text" }, make("small", {}, arrow(m)))));
  const row = D.rows.find((r) => r[0] === run[1] && r[1] === run[2]);
  box.replaceChildren(make("h3", {}, `${D.methods[run[2]]}, ${D.tasks[run[1]]}, ${D.images[run[0]]}`),
    spread, make("table", {}, make("tbody", {}, ...lines)),
    run[5] == null ? "" : make("div", {}, make("code", {}, D.texts[run[5]])), command(`${row[5]} --image ${D.quoted[run[0]]}`));
}

function place() {
  const stage = $("stage");
  const [w, h] = [stage.clientWidth, stage.clientHeight];
  const slack = (size) => (size * (view.zoom - 1)) / 2;
  view.x = Math.max(-slack(w), Math.min(slack(w), view.x));
  view.y = Math.max(-slack(h), Math.min(slack(h), view.y));
  for (const [name, value] of [["--zoom", view.zoom], ["--x", `${view.x}px`], ["--y", `${view.y}px`], ["--cut", `${view.cut}%`]]) stage.style.setProperty(name, value);
  stage.classList.toggle("zoomed", view.zoom > 1);
  $("slider").value = view.cut;
  $("zoom").value = view.zoom;
  $("zoom-value").textContent = `${view.zoom}×`;
}

function drag(event) {
  const stage = $("stage"), bounds = stage.getBoundingClientRect();
  const pans = view.zoom > 1 && event.target !== $("divider");
  let last = event;
  const move = (now) => {
    if (pans) { view.x += now.clientX - last.clientX; view.y += now.clientY - last.clientY; }
    else view.cut = Math.max(0, Math.min(100, ((now.clientX - bounds.left) / bounds.width) * 100));
    last = now;
    place();
  };
  const stop = () => {
    stage.removeEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) stage.removeEventListener(end, stop);
  };
  stage.setPointerCapture(event.pointerId);
  stage.addEventListener("pointermove", move);
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, stop);
  if (!pans) move(event);
}
