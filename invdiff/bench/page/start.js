// Failures, measures, facts

function failures() {
  const groups = new Map();
  for (const run of D.runs) {
    if (run[4] === OK || !state.methods.has(run[2]) || (state.task !== ALL && run[1] !== state.task)) continue;
    const key = [run[1], run[2], run[4], run[6]].join();
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  const lines = [...groups.values()].map((runs) => {
    const names = runs.map((r) => D.images[r[0]]);
    const images = names.slice(0, 4).join(", ") + (names.length > 4 ? ` and ${names.length - 4} more` : "");
    const [, task, method, , status, , error] = runs[0];
    return make("tr", {}, make("td", { class: "text" }, D.methods[method]), make("td", { class: "text" }, D.tasks[task]),
      make("td", { class: "text bad" }, status === FAILED ? "failed" : "refused"), make("td", { class: "text wrap" }, images), make("td", { class: "text wrap" }, error == null ? "" : D.texts[error]));
  });
  const head = make("tr", {}, ...["Strategy", "Task", "", "Images", "What it said"].map((t) => make("th", { scope: "col", class: "text" }, t)));
  $("failures-body").replaceChildren(lines.length
    ? make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of failures, scrolls sideways" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)))
    : make("p", { class: "hint" }, "None among what is chosen."));
}

function facts() {
  const counts = [0, 0, 0];
  for (const run of D.runs) counts[run[4]] += 1;
  const many = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
  const parts = [many(D.runs.length, "run"), many(D.tasks.length, "task"), many(D.images.length, "image"), D.methods.length === 1 ? "1 strategy" : `${D.methods.length} strategies`, `${counts[FAILED]} failed`, `${counts[REFUSED]} refused`];
  $("facts").textContent = parts.join(" · ");
  $("notes").replaceChildren(...D.notes.slice(0, 20).map((note) => make("li", {}, note)));
  const head = make("tr", {}, ...["Measure", "Unit", "Better", "Computed by"].map((t) => make("th", { scope: "col", class: "text" }, t)));
  $("measures").replaceChildren(make("thead", {}, head), make("tbody", {}, ...D.measures.map((m) =>
    make("tr", {}, ...[m.title, m.unit || "–", aim(m), m.backend].map((t) => make("td", { class: "text" }, t))))));
  $("missing").textContent = D.missing.length ? `Without a value in any run: ${D.missing.join(", ")}. Reasons: weights that are not on the disk, images too small, too few samples (scores of their spread need four).` : "";
}

// Start

function refresh() {
  $("methods-summary").textContent = `Strategies (${state.methods.size} of ${D.methods.length})`;
  table();
  plot();
  choices();
  failures();
}

function checkboxes(box, names, set, changed) {
  box.replaceChildren(...names.map(([value, text]) => make("label", {}, make("input", { type: "checkbox", value, checked: set.has(value), onchange: (event) => {
    if (event.target.checked) set.add(value); else set.delete(value);
    changed();
  } }), " ", text)));
}

function start() {
  const tasks = D.tasks.map((name, i) => [i, name]);
  options($("task"), D.tasks.length > 1 ? [[ALL, "all"], ...tasks] : tasks, state.task);
  options($("reference"), [["", "nothing: show means"], ...D.methods.map((name, i) => [i, name])], "");
  options($("picture-task"), tasks, 0);
  options($("picture-image"), D.images.map((name, i) => [i, name]), 0);
  const measures = D.measures.map((m, k) => [k, title(m), m]);
  options($("quality"), measures.filter(([, , m]) => !m.cost), 0);
  options($("cost"), measures.filter(([, , m]) => m.cost), D.measures.findIndex((m) => m.name === "nfe"));
  const list = () => checkboxes($("methods"), D.methods.map((name, i) => [i, name]), state.methods, refresh);
  list();
  checkboxes($("columns"), measures, state.columns, () => { table(); gallery(); });
  $("all").onclick = () => { D.methods.forEach((_, i) => state.methods.add(i)); list(); refresh(); };
  $("none").onclick = () => { state.methods.clear(); list(); refresh(); };
  $("task").onchange = (event) => {
    state.task = Number(event.target.value);
    if (state.task !== ALL) $("picture-task").value = state.task;
    images();
    refresh();
  };
  $("reference").onchange = (event) => { state.reference = event.target.value === "" ? null : Number(event.target.value); table(); };
  for (const id of ["quality", "cost"]) $(id).onchange = plot;
  $("picture-task").onchange = () => { images(); choices(); };
  $("picture-image").onchange = choices;
  for (const id of ["left", "right", "view"]) $(id).onchange = gallery;
  $("slider").oninput = (event) => { view.cut = Number(event.target.value); place(); };
  $("zoom").oninput = (event) => { view.zoom = Number(event.target.value); place(); };
  $("stage").addEventListener("pointerdown", drag);
  $("filters").onsubmit = (event) => event.preventDefault();
  for (const menu of document.querySelectorAll(".menu")) {
    document.addEventListener("pointerdown", (event) => { if (!menu.contains(event.target)) menu.open = false; });
    menu.addEventListener("keydown", (event) => { if (event.key === "Escape") { menu.open = false; menu.firstElementChild.focus(); } });
  }
  let width = 0;
  new ResizeObserver(() => { if ($("plot").clientWidth !== width) { width = $("plot").clientWidth; plot(); place(); } }).observe($("plot"));
  facts();
  images();
  refresh();
  place();
}

// Only images that the chosen task has
function images() {
  const task = Number($("picture-task").value);
  const there = [...new Set(D.runs.filter((run) => run[1] === task).map((run) => run[0]))].sort((a, b) => a - b);
  const chosen = there.includes(Number($("picture-image").value)) ? $("picture-image").value : there[0];
  options($("picture-image"), there.map((i) => [i, D.images[i]]), chosen);
}

start();
