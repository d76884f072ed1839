"use strict";
// What all views use: the page's data, elements, tables, and the way from one view to another.
// Text from a run reaches the page through text nodes alone; nothing is ever parsed as HTML.

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];
const parsedData = new Map();

/** The data element of that id, parsed when it is first asked for; undefined where there is none. */
function dataOf(id) {
  if (!parsedData.has(id)) {
    const element = document.getElementById(id);
    parsedData.set(id, element === null ? undefined : JSON.parse(element.textContent));
  }
  return parsedData.get(id);
}

// As agent/visible.py has it; a page has no half surrogate pairs.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

/** Text in which control characters are seen and change nothing: ANSI escapes, marks of writing direction. */
function visible(text) {
  return String(text).replace(HIDDEN, (c) => {
    const code = c.charCodeAt(0);
    return code < 32 ? String.fromCharCode(0x2400 + code) : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

/** An element. `given` are properties, `on…` listeners among them; children that are no nodes become text. */
function el(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element[name] = value;
  }
  return filled(element, children);
}

function filled(element, children) {
  for (const child of children.flat(9)) {
    if (child !== null && child !== undefined) element.append(child instanceof Node ? child : visible(child));
  }
  return element;
}

const link = (hash, ...children) => el("a", { href: hash }, ...children);
const heading = (text) => el("h2", {}, text);

/** A number for people. */
function shown(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : size < 0.001 ? value.toExponential(1) : value.toFixed(digits);
}

const mean = (values) => {
  const known = (values ?? []).filter((v) => typeof v === "number");
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
};

/** A table that sorts by a click on a column's head, with a field to search in and choices to filter by.
 *  `columns` are {name, value(row), cell(row)?, filter?, kind?: the cells' class}; `opens(row)` is the hash that a click on a row goes to. */
function table(columns, rows, { opens = null, id = "table", most = 100, sort = null } = {}) {
  const state = { sort: sort?.[0] ?? null, down: sort?.[1] ?? false, text: "", first: 0, chosen: new Map() };
  const body = el("tbody"), count = el("span", { class: "dim", id: `${id}-count` }), head = el("tr");
  const words = new Map();
  const textOf = (row) => {
    if (!words.has(row)) words.set(row, columns.map((c) => String(c.value(row) ?? "")).join("\n").toLowerCase());
    return words.get(row);
  };

  function kept() {
    const wanted = state.text.toLowerCase();
    let found = rows.filter((row) => [...state.chosen].every(([c, v]) => v === "" || String(c.value(row) ?? "–") === v));
    if (wanted) found = found.filter((row) => textOf(row).includes(wanted));
    if (state.sort !== null) {
      const { value } = columns[state.sort];
      found = found.map((row) => [value(row), row]).sort(([a], [b]) => compared(a, b, state.down)).map(([, row]) => row);
    }
    return found;
  }

  function draw() {
    const found = kept();
    const lastPage = Math.floor(Math.max(0, found.length - 1) / most) * most;
    state.first = Math.max(0, Math.min(state.first, lastPage));
    body.replaceChildren(...found.slice(state.first, state.first + most).map((row) => {
      const cells = columns.map((c) => {
        const value = c.value(row);
        return el("td", { class: c.kind ?? (typeof value === "number" ? "number" : "") }, c.cell ? c.cell(row) : shown(value));
      });
      if (opens === null) return el("tr", {}, cells);
      return el("tr", { class: "link", onclick: (e) => { if (!e.target.closest("a")) location.hash = opens(row); } }, cells);
    }));
    const last = Math.min(state.first + most, found.length);
    count.textContent = `${found.length ? state.first + 1 : 0}–${last} of ${found.length} (${rows.length} in all)`;
    columns.forEach((c, at) => {
      head.children[at].firstChild.textContent = c.name + (state.sort === at ? (state.down ? " ▼" : " ▲") : "");
    });
  }

  columns.forEach((c, at) => head.append(el("th", {}, el("button", {
    type: "button", title: c.about ?? "sort",
    onclick: () => { state.down = state.sort === at ? !state.down : false; state.sort = at; state.first = 0; draw(); },
  }, c.name))));
  const tools = el("div", { class: "tools" }, el("input", {
    type: "search", placeholder: "search", id: `${id}-search`,
    oninput: (e) => { state.text = e.target.value; state.first = 0; draw(); },
  }));
  for (const c of columns.filter((column) => column.filter)) {
    const options = [...new Set(rows.map((row) => String(c.value(row) ?? "–")))].sort().slice(0, 200);
    const select = el("select", {
      id: `${id}-filter-${c.name}`, onchange: (e) => { state.chosen.set(c, e.target.value); state.first = 0; draw(); },
    }, el("option", { value: "" }, `${c.name}: all`), options.map((o) => el("option", { value: o }, o)));
    tools.append(select);
  }
  const turn = (by) => () => { state.first += by * most; draw(); };
  tools.append(el("button", { type: "button", onclick: turn(-1) }, "‹"), count, el("button", { type: "button", onclick: turn(1) }, "›"));
  draw();
  return el("div", { id }, tools, el("table", {}, el("thead", {}, head), body));
}

function compared(a, b, down) {
  if (a === null || a === undefined) return b === null || b === undefined ? 0 : 1; // the unknown comes last
  if (b === null || b === undefined) return -1;
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  return down ? -order : order;
}

/** One run's part of the page. */
class Run {
  constructor(name, said) {
    this.name = name;
    this.said = said;
    this.run = dataOf(`${name}-run`);
    this.label = said.label;
  }

  get questions() { return dataOf(`${this.name}-questions`); }
  get spans() { return dataOf(`${this.name}-spans`); }
  get evals() { return dataOf(`${this.name}-evals`); }

  question(number) {
    const row = this.questions[number];
    if (!row) throw new Error(`this report has no question ${number}`);
    const [id, text, answers, supporting, kind] = row;
    return { id, text: text ?? id, answers: answers ?? [], supporting: supporting ?? [], kind: kind || null };
  }

  /** The rows of the table of groups. */
  get groups() {
    if (this.rows === undefined) {
      const columns = dataOf(`${this.name}-groups`);
      const { words, at: stops } = columns.stops;
      const column = (name) => (Array.isArray(columns[name]) ? columns[name] : columns[name].at.map((i) => (i === null ? null : columns[name].words[i])));
      const names = Object.keys(columns).filter((name) => name !== "stops");
      const all = names.map(column);
      this.rows = columns.batch.map((_, i) => {
        const row = Object.fromEntries(names.map((name, n) => [name, all[n][i]]));
        row.stops = stops[i].map((s) => words[s]);
        return row;
      });
    }
    return this.rows;
  }

  /** A batch may have a question twice, at different places. */
  group(batch, order, question) {
    return this.groups.find((g) => g.batch === batch && (g.order ?? 0) === order && g.question === question);
  }

  /** The episodes of a group that the page holds, by member. */
  episodes(batch, order, question) {
    const found = new Map();
    for (const part of [`${batch}`, `${batch}-rest`, `${batch}-asked`]) {
      for (const episode of dataOf(`${this.name}-b-${part}`)?.[question] ?? []) if ((episode.order ?? 0) === order) found.set(episode.member, episode);
    }
    return new Map([...found].sort(([a], [b]) => a - b));
  }

  /** The episodes of a question in an evaluation that the page holds: one, or as many as it has samples. */
  evaluated(step, question) {
    const found = ["", "-asked"].flatMap((part) => dataOf(`${this.name}-e-${step}${part}`)?.[question] ?? []);
    return found.sort((a, b) => (a.sample ?? 0) - (b.sample ?? 0));
  }
}
