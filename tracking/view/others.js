// A question over time, the actors' timeline, and the comparison of two runs or evaluations.

function questionList([run]) {
  const byQuestion = new Map();
  for (const g of run.groups) {
    if (!byQuestion.has(g.question)) byQuestion.set(g.question, []);
    byQuestion.get(g.question).push(g);
  }
  const evals = run.evals, steps = Object.keys(evals.em), at = new Map(evals.questions.map((q, i) => [q, i]));
  const numbers = [...new Set([...byQuestion.keys(), ...evals.questions])];
  const rate = (g) => mean(g.outcomes);
  const rows = numbers.map((number) => {
    const draws = byQuestion.get(number) ?? [], i = at.get(number);
    const history = i === undefined ? draws.map(rate) : steps.map((s) => (evals.em[s][i] === "-" ? null : Number(evals.em[s][i])));
    const clear = history.filter(known);
    return { number, question: run.question(number), use: i === undefined ? "training" : "held out", draws: i === undefined ? draws.length : clear.length,
      first: clear[0] ?? null, last: clear.at(-1) ?? null };
  });
  return [
    el("h1", {}, "Questions"), el("p", {}, "Success is the mean outcome of a draw's episodes, or the exact match of an evaluation."),
    table([{ name: "question", value: (r) => r.question.text, kind: "wide", cell: (r) => link(questionHash(r.number), r.question.text) }, { name: "id", value: (r) => r.question.id, kind: "id" },
      { name: "kind", value: (r) => r.question.kind ?? null, filter: true }, { name: "use", value: (r) => r.use, filter: true }, { name: "times", value: (r) => r.draws },
      { name: "first", value: (r) => r.first }, { name: "last", value: (r) => r.last }, { name: "change", value: (r) => (known(r.first) && known(r.last) ? r.last - r.first : null) }],
    rows, { id: "questions", opens: (r) => questionHash(r.number), sort: [4, true] }),
  ];
}

/** Whether the policy wrote the same text in both; null where one isn't in the report. */
const sameText = (some, others) => {
  const written = (episodes) => JSON.stringify(episodes.map((e) => (e.turns ?? []).map((t) => t.text ?? "")));
  return some.length && others.length ? written(some) === written(others) : null;
};

/** What an episode did, in a line. */
const inShort = (e) => [...(e.turns ?? []).flatMap((t) => (t.calls ?? []).map((c) => c.argument)), `→ ${e.answer ?? "no answer"}`].join(" · ");

function viewQuestion([run], number) {
  const question = run.question(number), draws = run.groups.filter((g) => g.question === number);
  const evals = run.evals, at = evals.questions.indexOf(number);
  const held = Object.keys(evals.em).map((step) => run.evaluated(step, number));
  const played = [...held.flat(), ...draws.flatMap((g) => [...episodesOf(run, g).values()])], parts = [about(question, number, played)];
  if (draws.length) {
    const rates = draws.map((g) => mean(g.outcomes));
    parts.push(lineChart("Success rate by batch", [{ name: "mean outcome", x: draws.map((g) => g.batch), y: rates }], { zero: true }) , heading("Its draws"), table([
      { name: "draw", value: (g) => g.draw, cell: (g) => link(groupHash(g), `draw ${g.draw}, batch ${g.batch}`) }, { name: "before", value: (g) => g.before }, { name: "state", value: (g) => g.state },
      { name: "flipped", value: (g) => flip(draws, g) }, { name: "rewards", value: (g) => (g.rewards ?? []).join(" "), cell: (g) => marks(g.rewards) }, { name: "searches", value: (g) => mean(g.searches) },
      { name: "what its best and its worst episode did", value: () => "", cell: (g) => extremes(run, g).map((e) => el("div", { class: "text" }, `${shown(e.reward)}: ${inShort(e)}`)) },
    ], draws, { id: "draws", opens: groupHash }));
  }
  if (at >= 0) {
    const rows = Object.entries(evals.em).map(([step, em], i) => ({ step: Number(step), em: em[at] === "-" ? null : Number(em[at]), episodes: held[i] }));
    const told = (r) => r.episodes.map(inShort).join("\n") || "not in this report";
    parts.push(heading("Its evaluations"), table([{ name: "step", value: (r) => r.step }, { name: "EM", value: (r) => r.em },
      { name: "flipped", value: (r) => { const before = rows[rows.indexOf(r) - 1]; return before && known(before.em) && before.em !== r.em ? "flipped" : null; } },
      { name: "text", value: (r) => ({ true: "as before", false: "another" })[sameText(rows[rows.indexOf(r) - 1]?.episodes ?? [], r.episodes)] ?? null },
      { name: "what the policy did", value: told, cell: (r) => el("span", { class: "text" }, told(r)) }],
    rows, { id: "evaluations" }), el("div", { class: "side" }, rows.flatMap((r) => r.episodes.map((e) => el("div", {}, el("b", {}, `step ${r.step}`), episodeBox(e, question))))));
  }
  if (!draws.length && at < 0) parts.push(el("p", {}, "It was neither drawn nor evaluated."));
  return parts;
}

/** Signal from a question that had none when it was last drawn otherwise: what the pool counts as flipped. */
function flip(draws, group) {
  if (group.state !== "signal") return null;
  const told = draws.slice(0, draws.indexOf(group)).filter((g) => ["signal", "too_hard", "too_easy"].includes(g.state));
  const before = told.at(-1)?.state ?? "signal";
  return before === "signal" ? null : `${before} → signal`;
}

function extremes(run, group) {
  const episodes = [...episodesOf(run, group).values()].filter((e) => known(e.reward)).sort((a, b) => b.reward - a.reward);
  return episodes.length > 1 ? [episodes[0], episodes.at(-1)] : episodes;
}

const WAITING = ["wait for a batch", "claim"];
const SPAN_COLOURS = {
  "play a group": "#56B4E9", generate: "#0072B2", search: "#009E73", "take weights": "#CC79A7", evaluate: "#E69F00",
  update: "#D55E00", publish: "#882255", save: "#000000", deliver: "#999933", "copy for saving": "#332288",
  ...Object.fromEntries(WAITING.map((what) => [what, "#dddddd"])),
}; // the same in every run

function viewActors([run]) {
  const spans = run.spans, head = [el("h1", {}, "Actors"), el("p", {}, "Who did what, by the clocks of their machines. A learner that waits for a batch is idle; so is a worker that claims and plays nothing. An engine generates while it has a request, and searches are shown while any is asked; what took less than 0.02 s is left out.")];
  if (!spans.start.length) return [...head, el("p", {}, "This run has no spans.jsonl.")];
  const actors = spans.actor.words, kinds = spans.what.words, total = spans.end.reduce((a, b) => Math.max(a, b), 0);
  const state = { from: Math.max(0, total - 60), to: total };
  const picture = el("div", { id: "timeline" }), buttons = el("div", { class: "tools" });
  const colour = (what) => SPAN_COLOURS[kinds[what]] ?? "#777777";
  const set = (from, to) => { const width = Math.min(total, Math.max(0.5, to - from)); state.from = Math.max(0, Math.min(from, total - width)); state.to = state.from + width; draw(); };
  const button = (name, change) => buttons.append(el("button", { type: "button", onclick: () => { const w = state.to - state.from; set(...change(state.from, state.to, w)); } }, name));
  button("whole run", () => [0, total]);
  button("zoom in", (a, b, w) => [a + w / 4, b - w / 4]);
  button("zoom out", (a, b, w) => [a - w / 2, b + w / 2]);
  button("‹", (a, b, w) => [a - w / 2, b - w / 2]);
  button("›", (a, b, w) => [a + w / 2, b + w / 2]);

  function draw() {
    const wide = 1100, left = 130, row = 34, high = actors.length * row + 24, { from, to } = state;
    const px = (t) => left + ((t - from) / (to - from)) * (wide - left - 10);
    const drawing = svg("svg", { viewBox: `0 0 ${wide} ${high}`, width: "100%", role: "img", "aria-label": "timeline" });
    const busy = actors.map(() => []), last = new Map();
    actors.forEach((name, at) => drawing.append(svg("text", { x: 2, y: at * row + 20 }, name)));
    for (const t of ticks(from, to, 8)) drawing.append(svg("line", { x1: px(t), x2: px(t), y1: 0, y2: high - 20, stroke: "#eee" }), svg("text", { x: px(t), y: high - 6, "text-anchor": "middle" }, `${short(t)} s`));
    spans.start.forEach((start, i) => {
      const end = spans.end[i], actor = spans.actor.at[i], what = spans.what.at[i];
      if (end < from || start > to) return;
      if (!WAITING.includes(kinds[what])) busy[actor].push([Math.max(start, from), Math.min(end, to)]);
      const x0 = Math.max(left, px(start)), x1 = Math.min(wide - 10, px(end)), key = `${actor} ${what}`;
      if (x1 - x0 < 0.4 && last.get(key) > x0 - 0.4) return; // too short to be told from the one before
      last.set(key, x1);
      drawing.append(svg("rect", { x: x0, width: Math.max(0.5, x1 - x0), y: actor * row + 6, height: 20, fill: colour(what), "fill-opacity": 0.55 },
        svg("title", {}, `${actors[actor]}: ${kinds[what]}, ${shown(end - start)} s, from ${shown(start, 1)} s on`)));
    });
    const legend = el("div", { class: "legend" }, kinds.map((name, at) => el("span", { class: "key" }, svg("svg", { width: 12, height: 10 }, svg("rect", { width: 12, height: 8, y: 1, fill: colour(at) })), name)));
    const shares = actors.map((name, at) => [name, covered(busy[at]) / (to - from)]);
    picture.replaceChildren(drawing, legend, el("p", { id: "busy" }, `Busy between ${shown(from, 1)} and ${shown(to, 1)} s: `, shares.map(([n, s]) => `${n} ${Math.round(s * 100)} %`).join(", ")));
  }
  draw();
  return [...head, buttons, picture];
}

/** Seconds that intervals cover together. */
function covered(intervals) {
  let sum = 0, end = -Infinity;
  for (const [from, to] of intervals.sort(([a], [b]) => a - b)) {
    if (to <= end) continue;
    sum += to - Math.max(from, end);
    end = to;
  }
  return sum;
}

function viewCompare(runs) {
  const sources = runs.flatMap((run) => Object.keys(run.evals.em).map((step) => ({ run, step, name: `${run.label}, step ${step}` })));
  const parts = [el("h1", {}, runs.length > 1 ? `${runs[0].label} against ${runs[1].label}` : "Two evaluations of this run")];
  if (runs.length > 1) {
    const both = (title, name, how) => lineChart(title, runs.filter((r) => r.run.steps[name]).map((r) => ({ name: r.label, colour: runs.indexOf(r), x: r.run.steps.step, y: r.run.steps[name] })), how);
    parts.push(el("div", { class: "charts", id: "both" }, heldOut(runs), CHARTS.flatMap(([title, names, how]) => (how.stacked ? names : names.slice(0, 1)).map((n) => both(names.length > 1 ? n : title, n, { zero: how.zero })))));
  } else parts.push(el("p", {}, "mode=view run=FOLDER compare=FOLDER compares two runs."));
  if (sources.length < 2) return [...parts, el("p", {}, "Fewer than two evaluations have logged their episodes.")];
  const found = el("div"), state = { left: 0, right: sources.length - 1 };
  if (runs.length > 1) state.left = sources.filter((s) => s.run === runs[0]).length - 1;
  if (state.left === state.right || state.left < 0) state.left = 0;
  const choice = (side) => el("select", { id: side, onchange: (e) => { state[side] = Number(e.target.value); draw(); } },
    sources.map((s, i) => el("option", { value: i, selected: state[side] === i }, s.name)));

  function draw() {
    const [left, right] = [sources[state.left], sources[state.right]];
    const { rows, strangers } = paired(left, right), differ = rows.filter((r) => r.left !== r.right);
    const count = (l, r) => rows.filter((row) => row.left === l && row.right === r).length;
    const box = el("div", { id: "pair" });
    const told = (row) => [[left, 0], [right, 1]].map(([s, i]) => [s, s.run.evaluated(s.step, row.numbers[i])]);
    const same = rows.map((row) => sameText(...told(row).map(([, episodes]) => episodes))).filter(known);
    const open = (row) => box.replaceChildren(...about(row.question, row.numbers[0], told(row).flatMap(([, episodes]) => episodes)), el("div", { class: "side" }, told(row).map(([s, episodes]) =>
      el("div", {}, el("b", {}, s.name), episodes.length ? episodes.map((e) => episodeBox(e, row.question)) : el("p", { class: "dim" }, "not in this report")))));
    found.replaceChildren(
      el("p", { id: "counts" }, `Of ${rows.length} questions in both: both right ${count(1, 1)}, the left one alone ${count(1, 0)}, the right one alone ${count(0, 1)}, none ${count(0, 0)}. `,
        `Of ${same.length} whose episodes are in this report, ${same.filter((s) => s).length} are word for word the same on both sides.`,
        strangers ? ` ${strangers} ids are of other questions on the one side than on the other, and left out.` : ""),
      table([{ name: "question", value: (r) => r.question.text, cell: (r) => el("button", { type: "button", onclick: () => { open(r); box.scrollIntoView(); } }, r.question.text) },
        { name: "kind", value: (r) => r.question.kind ?? null, filter: true }, { name: "left", value: (r) => r.left, filter: true }, { name: "right", value: (r) => r.right, filter: true }],
      differ, { id: "differ" }), box);
  }
  draw();
  return [...parts, heading("Questions that one answers and the other doesn't"), el("div", { class: "tools" }, choice("left"), "against", choice("right")), found];
}

/** The questions that two evaluations know, by id and text: an id like dev_17 is of no file alone. And how many ids are
 *  of another question in each. */
function paired(left, right) {
  const marksOf = ({ run, step }) => new Map(run.evals.questions.map((q, i) => [run.question(q).id, [q, run.evals.em[step][i]]]));
  const other = marksOf(right);
  const all = [...marksOf(left)].filter(([id, [, em]]) => em !== "-" && other.has(id) && other.get(id)[1] !== "-").map(([id, [q, em]]) => ({
    question: left.run.question(q), numbers: [q, other.get(id)[0]], left: Number(em), right: Number(other.get(id)[1]),
  }));
  const unknown = (question) => question.text === question.id; // a log without texts
  const alike = (one, two) => one.text === two.text || unknown(one) || unknown(two);
  const rows = all.filter((row) => alike(row.question, right.run.question(row.numbers[1])));
  return { rows, strangers: all.length - rows.length };
}
