"use strict";
// The page's data (report.py, _data) is shown as text only: nothing of it is ever parsed as HTML.

const D = JSON.parse(document.getElementById("data").textContent);
const [OK, FAILED, REFUSED] = [0, 1, 2];
const ALL = -1;
const $ = (id) => document.getElementById(id);
const SHOWN = ["psnr", "ssim", "lpips", "crps", "coverage_90", "spread_skill", "nfe", "seconds"];
const own = D.measures.map((m, k) => k).filter((k) => D.measures[k].better === "");

const state = {
  task: D.tasks.length > 1 ? ALL : 0,
  reference: null,
  methods: new Set(D.methods.keys()),
  columns: new Set(D.measures.map((m, k) => k).filter((k) => SHOWN.includes(D.measures[k].name) || own.includes(k))),
  sort: null,
  open: new Set(),
};

// Making elements

function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.className = value;
    else if (value !== false && value != null) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value, selected: String(value) === String(chosen) }, text)));
}

function command(text) {
  const button = make("button", { type: "button", "aria-label": "Copy the command" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // not allowed for pages from files in some browsers
      const range = document.createRange();
      range.selectNodeContents(button.previousSibling);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return make("div", { class: "command" }, make("code", {}, text), button);
}

// Numbers

// As many decimals as show two digits of the interval and at least three of the number (four where there is no interval)
function number(value, half) {
  if (value == null) return "–";
  if (Number.isInteger(value) && !(half > 0) && (value === 0 || Math.abs(value) >= 10)) return String(value);
  const decimals = (v, count) => (v ? count - 1 - Math.floor(Math.log10(Math.abs(v))) : 0);
  const wanted = half > 0 ? Math.max(decimals(half, 2), decimals(value, 3)) : decimals(value, 4);
  return value.toFixed(Math.max(0, Math.min(5, wanted)));
}

const short = (half) => (half >= 10 ? half.toFixed(0) : half.toFixed(Math.max(0, Math.min(5, 1 - Math.floor(Math.log10(half))))));
const signed = (value, half) => (value > 0 ? "+" : "") + number(value, half).replace("-", "−");
const title = (m) => (m.unit ? `${m.title} (${m.unit})` : m.title);
const goodness = (m, value) => (m.better === "higher" ? value : m.better === "lower" ? -value : -Math.abs(value - m.target));
const arrow = (m) => ({ higher: "↑", lower: "↓", target: `→ ${m.target}` })[m.better] ?? "";
const aim = (m) => ({ higher: "higher is better", lower: "lower is better", target: `best at ${m.target}` })[m.better] ?? "no direction is better";

// b minus a in the scope of a task: [means, halves]
function difference(task, a, b) {
  const table = D.differences[task === ALL ? D.tasks.length : task];
  if (a === b) return null;
  if (a < b) return table[a][b - a - 1];
  const [means, halves] = table[b][a - b - 1];
  return [means.map((v) => (v == null ? null : -v)), halves];
}

// The table

function rows() {
  const wanted = state.task === ALL ? D.rows : D.rows.filter((row) => row[0] === state.task);
  return wanted.filter((row) => state.methods.has(row[1]));
}

const taskName = (t) => (t === ALL ? "all tasks" : D.tasks[t]);
const total = (row) => row[2][OK] + row[2][FAILED] + row[2][REFUSED];

function cell(row, k) {
  if (state.reference == null || row[1] === state.reference) return { value: row[3][k], half: row[4][k] };
  const found = difference(row[0], state.reference, row[1]);
  return { value: found[0][k], half: found[1][k], difference: true };
}

function sortKey(row, by) {
  if (by === "method") return row[1];
  if (by === "task") return row[0] === ALL ? D.tasks.length : row[0];
  if (by === "runs") return row[2][OK] / total(row);
  return cell(row, by).value;
}

function sorted(list) {
  const { by, down } = state.sort ?? { by: "task", down: false };
  const sign = down ? -1 : 1;
  return [...list].sort((p, q) => {
    const [a, b] = [sortKey(p, by), sortKey(q, by)];
    if (a == null || b == null) return (a == null) - (b == null); // what has no value is always last
    return sign * (a - b) || sortKey(p, "task") - sortKey(q, "task") || p[1] - q[1];
  });
}

function heading(by, text, note, label) {
  const on = state.sort?.by === by;
  const button = make("button", { type: "button", "data-sort": by, title: label, onclick: () => {
    const first = typeof by === "number" && ["higher", ""].includes(D.measures[by].better); // best on top
    state.sort = { by, down: on ? !state.sort.down : first };
    table();
    $("table").querySelector(`[data-sort="${by}"]`).focus();
  } }, text, on ? (state.sort.down ? " ▼" : " ▲") : "");
  const direction = on ? (state.sort.down ? "descending" : "ascending") : null;
  return make("th", { scope: "col", "aria-sort": direction, class: typeof by === "string" ? (by === "method" ? "text" : "text wide") : "" }, button, note ? make("small", {}, make("br"), note) : null);
}

function table() {
  const columns = [...state.columns].sort((a, b) => a - b);
  const list = sorted(rows());
  const best = new Map(); // the row that is best in a task and measure
  for (const row of list) for (const k of columns) {
    const m = D.measures[k], key = `${row[0]},${k}`, known = best.get(key);
    if (row[3][k] == null || m.better === "" || m.cost) continue;
    if (!known || goodness(m, row[3][k]) > goodness(m, known[3][k])) best.set(key, row);
  }
  const note = (m) => [m.unit, arrow(m)].filter(Boolean).join(" ");
  const head = make("tr", {}, heading("method", "Strategy"), heading("task", "Task"), heading("runs", "Runs"),
    ...columns.map((k) => heading(k, D.measures[k].title, note(D.measures[k]), `${title(D.measures[k])}, ${aim(D.measures[k])}`)));
  $("table").tHead.replaceChildren(head);
  $("table").tBodies[0].replaceChildren(...list.flatMap((row, i) => tableRow(row, columns, best, i > 0 && (state.sort?.by ?? "task") === "task" && row[0] !== list[i - 1][0])));
  const reference = state.reference == null ? "" : `Differences from ${D.methods[state.reference]}, whose own means are shown. `;
  const pooled = state.task === ALL && D.tasks.length > 1 ? "“all tasks” is the mean over tasks, of strategies that have a value in each." : "";
  $("results-hint").textContent = list.length ? reference + pooled : "No strategy is chosen.";
}

// "best", "tied" if its paired difference from the best has zero in its interval, or ""
function standing(row, k, best) {
  if (!best) return "";
  if (row[1] === best[1]) return "best";
  const m = D.measures[k], [means, halves] = difference(row[0], best[1], row[1]);
  return m.better !== "target" && halves[k] != null && Math.abs(means[k]) <= halves[k] ? "tied" : "";
}

function tableRow(row, columns, best, first) {
  const [task, method, counts] = row;
  const id = `${task},${method}`;
  const open = state.open.has(id);
  const name = make("button", { type: "button", "aria-expanded": String(open), title: D.methods[method], onclick: () => {
    if (!state.open.delete(id)) state.open.add(id);
    table();
    $("table").querySelector(`[data-row="${id}"] button`).focus();
  } }, D.methods[method]);
  const runs = [`${counts[OK]} of ${total(row)}`];
  if (counts[FAILED]) runs.push(make("span", { class: "bad" }, `, ${counts[FAILED]} failed`));
  if (counts[REFUSED]) runs.push(make("span", { class: "bad" }, `, ${counts[REFUSED]} refused`));
  const cells = columns.map((k) => {
    const m = D.measures[k];
    const { value, half, difference: differs } = cell(row, k);
    if (value == null) return make("td", {}, make("span", { "aria-label": "no value" }, "–"));
    let mark = "", look = "";
    if (differs && half != null && Math.abs(value) > half && (m.better === "higher" || m.better === "lower")) {
      look = value > 0 === (m.better === "higher") ? "better" : "worse";
      mark = look === "better" ? "▲ " : "▼ ";
    }
    if (!differs) look = standing(row, k, best.get(`${task},${k}`));
    const text = make("span", { class: look }, mark, differs ? signed(value, half) : number(value, half));
    return make("td", { "data-value": value }, text, half ? make("small", {}, ` ± ${short(half)}`) : null);
  });
  const line = make("tr", { "data-row": id, "data-task": taskName(task), "data-method": D.methods[method], class: [method === state.reference ? "reference" : "", first ? "first" : ""].join(" ") },
    make("td", { class: "name" }, name, make("small", { class: "narrow" }, taskName(task), counts[OK] < total(row) ? `, ${counts[OK]} of ${total(row)}` : "")),
    make("td", { class: "text wide" }, taskName(task)), make("td", { class: "text wide" }, ...runs), ...cells);
  return open ? [line, make("tr", { class: "detail" }, make("td", { colspan: columns.length + 3 }, detail(row)))] : [line];
}

function detail([task, method, , , , again]) {
  const found = D.runs.filter((run) => run[2] === method && (task === ALL || run[1] === task));
  const settings = [...new Set(found.map((run) => run[5]).filter((s) => s != null))].map((s) => D.texts[s]);
  const inner = make("div", { class: "inner" });
  inner.append(...settings.map((text) => make("div", {}, "Settings: ", make("code", {}, text))));
  inner.append(again ? command(again) : make("div", {}, "Open the row of a task for its command."));
  return inner;
}

// Quality against cost

const NS = "http://www.w3.org/2000/svg";
function draw(tag, attributes, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function steps(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((s) => s * power >= rough);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) found.push(Number(v.toPrecision(10)));
  return found;
}

// Logarithmic where costs span more than a decade; log(1 + x) where some are zero
function costScale(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (high <= 10 * low || high === 0) {
    const room = 0.08 * (high - low || high || 1);
    return { f: (v) => v, low: low - room, high: high + room, ticks: steps(low - room, high + room, 6) };
  }
  const shift = low > 0 ? 0 : 1;
  const f = (v) => Math.log10(v + shift);
  const room = 0.06 * (f(high) - f(low));
  const ticks = shift ? [0] : [];
  for (let p = Math.floor(f(low)); p <= f(high) + 1; p++) {
    for (const s of f(high) - f(low) < 2.2 ? [1, 2, 5] : [1]) ticks.push(Number((s * 10 ** p).toPrecision(6)));
  }
  const shown = ticks.filter((t) => f(t) >= f(low) - room && f(t) <= f(high) + room);
  return { f, low: f(low) - room, high: f(high) + room, ticks: shown };
}

function plot() {
  const [q, c] = [Number($("quality").value), Number($("cost").value)];
  const [quality, cost] = [D.measures[q], D.measures[c]];
  const scope = state.task;
  const list = quality && cost ? D.rows.filter((row) => row[0] === scope && state.methods.has(row[1]) && row[3][q] != null && row[3][c] != null) : [];
  const box = $("plot");
  if (!list.length) {
    box.replaceChildren(make("p", { class: "hint" }, scope === ALL ? "No chosen strategy has a value in every task: choose a task above." : "No chosen strategy has both values."));
    $("plot-hint").textContent = "";
    return;
  }
  // Means of few images say little about strategies, whose differences are the same on most images: so bars are of the paired difference
  const best = list.reduce((a, b) => (goodness(quality, b[3][q]) > goodness(quality, a[3][q]) ? b : a));
  const points = list.map((row) => ({ name: D.methods[row[1]], x: row[3][c], y: row[3][q], half: difference(scope, best[1], row[1])?.[1][q] ?? 0 }));
  const width = Math.max(280, box.clientWidth), height = Math.min(460, Math.max(300, width * 0.5));
  const edge = { left: 58, right: 14, top: 14, bottom: 44 };
  const scale = costScale(points.map((p) => p.x));
  const span = Math.max(...points.map((p) => p.y)) - Math.min(...points.map((p) => p.y));
  const ends = points.flatMap((p) => [-1, 1].map((sign) => p.y + sign * Math.min(p.half, span / 3 || p.half))); // long bars are cut
  if (quality.better === "target") ends.push(quality.target);
  const room = 0.06 * (Math.max(...ends) - Math.min(...ends) || Math.abs(ends[0]) || 1);
  const [low, high] = [Math.min(...ends) - room, Math.max(...ends) + room];
  const inside = (y) => Math.max(edge.top, Math.min(height - edge.bottom, y));
  const X = (v) => edge.left + ((scale.f(v) - scale.low) / (scale.high - scale.low)) * (width - edge.left - edge.right);
  const Y = (v) => inside(height - edge.bottom - ((v - low) / (high - low)) * (height - edge.top - edge.bottom));

  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": `${title(quality)} against ${title(cost)}, ${taskName(scope)}` });
  for (const v of steps(low, high, 5)) {
    svg.append(draw("line", { class: "tick", x1: edge.left, x2: width - edge.right, y1: Y(v), y2: Y(v) }),
      draw("text", { x: edge.left - 8, y: Y(v) + 4, "text-anchor": "end" }, String(v)));
  }
  for (const v of scale.ticks) {
    svg.append(draw("line", { class: "tick", x1: X(v), x2: X(v), y1: edge.top, y2: height - edge.bottom }),
      draw("text", { x: X(v), y: height - edge.bottom + 18, "text-anchor": "middle" }, String(v)));
  }
  if (quality.better === "target") svg.append(draw("line", { class: "front", x1: edge.left, x2: width - edge.right, y1: Y(quality.target), y2: Y(quality.target) }));
  svg.append(draw("text", { x: (edge.left + width) / 2, y: height - 6, "text-anchor": "middle" }, `${title(cost)}, less is better`),
    draw("text", { x: 13, y: (height - edge.bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 13 ${(height - edge.bottom) / 2})` }, `${title(quality)}, ${aim(quality)}`));

  const front = [];
  for (const p of [...points].sort((a, b) => a.x - b.x || goodness(quality, b.y) - goodness(quality, a.y))) {
    if (quality.better !== "" && (!front.length || goodness(quality, p.y) > goodness(quality, front.at(-1).y))) front.push(p);
  }
  if (quality.better !== "target") {
    const path = front.map((p, i) => (i ? `H${X(p.x)}V${Y(p.y)}` : `M${X(p.x)} ${Y(p.y)}`)).join("");
    svg.append(draw("path", { class: "front", d: front.length ? `${path}H${width - edge.right}` : "" }));
  }
  const tip = make("div", { class: "tip", hidden: true });
  const taken = points.map((p) => [X(p.x) - 6, Y(p.y) - 6, X(p.x) + 6, Y(p.y) + 6]);
  for (const p of [...points].sort((a, b) => front.includes(b) - front.includes(a))) {
    const apart = p.half ? ` (± ${short(p.half)} against ${D.methods[best[1]]})` : "";
    const text = `${p.name}: ${title(quality)} ${number(p.y, p.half)}${apart}, ${title(cost)} ${number(p.x, 0)}${front.includes(p) ? "; nothing cheaper is better" : ""}`;
    const group = draw("g", { class: front.includes(p) ? "point on" : "point", tabindex: 0, role: "img", "aria-label": text });
    if (p.half) group.append(draw("line", { x1: X(p.x), x2: X(p.x), y1: Y(p.y - p.half), y2: Y(p.y + p.half) }));
    group.append(draw("circle", { cx: X(p.x), cy: Y(p.y), r: 5.5 }), draw("circle", { cx: X(p.x), cy: Y(p.y), r: 14, style: "fill:transparent;stroke:none" }));
    const show = () => {
      tip.textContent = text;
      tip.hidden = false;
      const left = Math.min(Math.max(0, X(p.x) - tip.offsetWidth / 2), width - tip.offsetWidth);
      tip.style.left = `${left}px`;
      tip.style.top = `${Y(p.y) + 14 + tip.offsetHeight > height ? Y(p.y) - 14 - tip.offsetHeight : Y(p.y) + 14}px`;
    };
    const hide = () => { tip.hidden = true; };
    for (const [event, action] of [["pointerenter", show], ["focus", show], ["click", show], ["pointerleave", hide], ["blur", hide]]) group.addEventListener(event, action);
    svg.append(group);
    const wide = 6.6 * p.name.length;
    for (const [dx, dy, anchor] of [[10, -7, "start"], [-10, -7, "end"], [10, 16, "start"], [-10, 16, "end"]]) { // the first place that is free
      const x = X(p.x) + dx, y = Y(p.y) + dy;
      const spot = [anchor === "start" ? x : x - wide, y - 11, anchor === "start" ? x + wide : x, y + 3];
      if (spot[0] < edge.left || spot[2] > width || spot[1] < 0 || taken.some((t) => spot[0] < t[2] && t[0] < spot[2] && spot[1] < t[3] && t[1] < spot[3])) continue;
      taken.push(spot);
      svg.append(draw("text", { class: "name", x, y, "text-anchor": anchor, style: "pointer-events:none" }, p.name));
      break;
    }
  }
  box.replaceChildren(svg, tip);
  $("plot-hint").textContent = `${taskName(scope)}: means over images. Bars: 95 % interval of the paired difference from the best, ${D.methods[best[1]]}. Blue: no chosen strategy is both cheaper and better. Point at a dot, or reach it by the Tab key, for its numbers.`;
}

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
  $("missing").textContent = D.missing.length ? `Without a value in any run: ${D.missing.join(", ")}. Reasons: weights that are not on the disk, images too small, no samples.` : "";
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
