// Charts in SVG: lines with bands, stacked areas, a timeline. A library would be thirty times as much code to bundle,
// to trust and to keep within the content policy, for three forms.

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, given = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(given)) element.setAttribute(name, value);
  return filled(element, children);
}

/** About `count` round numbers from `low` to `high`. */
function ticks(low, high, count = 4) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let n = Math.ceil(low / step); found.length <= count && n * step <= high + step * 1e-9; n += 1) found.push(Number((n * step).toPrecision(12)));
  return found;
}

const W = 460, H = 190, LEFT = 48, RIGHT = 8, TOP = 8, BOTTOM = 24;

/** Lines over steps. `series` are {name, x, y, low?, high?, dash?}; null values are gaps. */
function lineChart(title, series, { zero = false, stacked = false } = {}) {
  const some = series.filter((s) => s.y.some((v) => v !== null && v !== undefined));
  if (!some.length) return null;
  const drawn = stacked ? piled(some) : some;
  const xs = drawn.flatMap((s) => s.x), ys = drawn.flatMap((s) => [...s.y, ...(s.low ?? []), ...(s.high ?? [])]).filter((v) => v !== null && v !== undefined);
  let [x0, x1, y0, y1] = [low(xs), high(xs), zero || stacked ? Math.min(0, low(ys)) : low(ys), high(ys)];
  if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) * 0.1 || 0.5), y1 + (Math.abs(y1) * 0.1 || 0.5)];
  if (x0 === x1) [x0, x1] = [x0 - 0.5, x1 + 0.5];
  const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (W - LEFT - RIGHT);
  const py = (y) => H - BOTTOM - ((y - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, width: "100%", role: "img", "aria-label": title });
  for (const y of ticks(y0, y1)) {
    picture.append(svg("line", { x1: LEFT, x2: W - RIGHT, y1: py(y), y2: py(y), stroke: "#e4e4e4" }),
      svg("text", { x: LEFT - 4, y: py(y) + 4, "text-anchor": "end" }, short(y)));
  }
  for (const x of ticks(x0, x1, 6)) picture.append(svg("text", { x: px(x), y: H - 8, "text-anchor": "middle" }, short(x)));
  drawn.forEach((s, at) => {
    const colour = COLOURS[(s.colour ?? at) % COLOURS.length];
    if (s.low && s.high) picture.append(svg("path", { d: band(s.x, s.low, s.high, px, py), fill: colour, "fill-opacity": stacked ? 0.75 : 0.15 }));
    if (!stacked) {
      picture.append(svg("path", { d: path(s.x, s.y, px, py), fill: "none", stroke: colour, "stroke-width": 1.4, "stroke-dasharray": s.dash ? "4 3" : "none" }));
      if (s.x.length < 40) s.x.forEach((x, i) => { if (known(s.y[i])) picture.append(svg("circle", { cx: px(x), cy: py(s.y[i]), r: 2, fill: colour })); });
    }
  });
  const legend = el("div", { class: "legend" }), cursor = svg("line", { y1: TOP, y2: H - BOTTOM, stroke: "#999", visibility: "hidden" });
  picture.append(cursor);
  const say = (x) => legend.replaceChildren(...(x === null ? [] : [el("span", { class: "key dim" }, `step ${shown(x)}`)]), ...some.map((s, at) => {
    const value = x === null ? null : s.y[s.x.indexOf(x)];
    const key = svg("svg", { width: 12, height: 10 }, svg("rect", { width: 12, height: 4, y: 3, fill: COLOURS[(s.colour ?? at) % COLOURS.length] }));
    return el("span", { class: "key" }, key, s.name, value === null || value === undefined ? "" : ` ${shown(value)}`);
  }));
  const points = [...new Set(xs)].sort((a, b) => a - b);
  picture.addEventListener("mousemove", (e) => {
    const box = picture.getBoundingClientRect(), x = x0 + (((e.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT) * (x1 - x0);
    const nearest = points.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));
    cursor.setAttribute("x1", px(nearest)); cursor.setAttribute("x2", px(nearest)); cursor.setAttribute("visibility", "visible");
    say(nearest);
  });
  picture.addEventListener("mouseleave", () => { cursor.setAttribute("visibility", "hidden"); say(null); });
  say(null);
  return el("figure", {}, el("figcaption", {}, title), picture, legend);
}

const low = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const high = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
const known = (v) => v !== null && v !== undefined;

/** A tick's number with all its digits, which are those of the step from tick to tick: fewer would make two alike. */
function short(tick) {
  const size = Math.abs(tick), exact = (value) => Number(value.toPrecision(12));
  if (size >= 1e6) return `${exact(tick / 1e6)}M`;
  if (size >= 1e4) return `${exact(tick / 1e3)}k`;
  return size > 0 && size < 1e-3 ? exact(tick).toExponential() : String(exact(tick));
}

/** Series as bands one on the other; `x` is the same of all. */
function piled(series) {
  let below = series[0].x.map(() => 0);
  return series.map((s) => {
    const top = s.y.map((v, i) => below[i] + (v ?? 0)), bottom = below;
    below = top;
    return { ...s, y: top, low: bottom, high: top };
  });
}

function path(x, y, px, py) {
  let drawing = false, d = "";
  x.forEach((at, i) => {
    if (!known(y[i])) { drawing = false; return; }
    d += `${drawing ? "L" : "M"}${px(at).toFixed(1)},${py(y[i]).toFixed(1)}`;
    drawing = true;
  });
  return d;
}

function band(x, lower, upper, px, py) {
  const at = x.map((_, i) => i).filter((i) => known(lower[i]) && known(upper[i]));
  if (!at.length) return "";
  const up = at.map((i) => `${px(x[i]).toFixed(1)},${py(upper[i]).toFixed(1)}`);
  const down = at.slice().reverse().map((i) => `${px(x[i]).toFixed(1)},${py(lower[i]).toFixed(1)}`);
  return `M${[...up, ...down].join("L")}Z`;
}
