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
