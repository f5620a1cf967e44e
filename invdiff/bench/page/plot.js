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
