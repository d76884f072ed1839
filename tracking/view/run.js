// The view of a run: what it is, how it goes, what happened.

const CHARTS = [
  ["Reward and its parts", ["reward/mean", "outcome/mean", "evidence/recall"], { zero: true }],
  ["Searches an episode", ["search/mean", "search/limit_mean"], { zero: true }],
  ["Tokens generated a step", ["rollout/generated_tokens"], { zero: true }],
  ["Groups of a batch", ["groups/signal", "groups/too_easy", "groups/too_hard"], { stacked: true }],
  ["Train–inference mismatch, nats", ["rollout/mismatch"], { zero: true }],
  ["Staleness, versions", ["rollout/staleness_max"], { zero: true }],
  ["Entropy, nats a token", ["learner/entropy"], { zero: true }],
  ["Gradient norm and clip fraction", ["learner/grad_norm", "learner/clip_share"], { zero: true }],
  ["Faults: episodes left out of a step, searches that failed", ["rollout/excluded", "retrieval/failures", "retrieval/timeouts"], { zero: true }],
  ["Tokens a second", ["rollout/tokens_per_s", "learner/tokens_per_s"], { zero: true }],
  ["Recycled share of the trained groups", ["pool/recycled_share"], { zero: true }],
  ["Places of the pool", ["pool/available", "pool/in_use", "pool/resting", "pool/consumed", "pool/quarantined"], { stacked: true }],
  ["Workers replaced", ["workers/restarts"], { zero: true }],
];

/** A line for each series of evaluations: other questions, or other ways of playing them, are no curve together. */
function heldOut(runs) {
  const of = (key, interval) => runs.flatMap((r, at) => [...new Set(r.run.evals.map((e) => e.series))].map((series, nth) => {
    const evals = r.run.evals.filter((e) => e.series === series);
    return {
      name: [runs.length > 1 ? r.label : key, series].filter(known).join(", "), colour: runs.length > 1 ? at : nth, dash: runs.length > 1 && nth > 0,
      x: evals.map((e) => e.step), y: evals.map((e) => e[key]), low: evals.map((e) => e[interval]?.[0]), high: evals.map((e) => e[interval]?.[1]),
    };
  }));
  return [lineChart("Held-out EM, with 95 % interval", of("em", "em_interval")), lineChart("Held-out F1, with 95 % interval", of("f1", "f1_interval"))];
}

function stepChart(run, title, names, how) {
  const { steps } = run.run;
  return lineChart(title, names.filter((n) => steps[n]).map((n) => ({ name: n, x: steps.step, y: steps[n] })), how);
}

/** Where the time of a step goes. */
function timeChart(run) {
  const { steps, evals } = run.run;
  if (!steps["time/step_s"]) return null;
  const at = (name) => steps[name] ?? steps.step.map(() => null);
  const parts = [at("learner/idle_s"), at("learner/seconds"), at("weights/publish_s")];
  const rest = at("time/step_s").map((all, i) => Math.max(0, (all ?? 0) - parts.reduce((sum, p) => sum + (p[i] ?? 0), 0)));
  const evaluated = new Map(evals.map((e) => [e.step, e.seconds]));
  const named = [["waits for rollouts", parts[0]], ["update", parts[1]], ["weights", parts[2]], ["other", rest], ["evaluation", steps.step.map((s) => evaluated.get(s) ?? 0)]];
  return lineChart("Time of a step, s", named.map(([name, y]) => ({ name, x: steps.step, y })), { stacked: true });
}

function factsTable(run) {
  const { about, evals, summary, overrides } = run.run;
  const rows = [["folder", run.run.folder], ["asked for", (overrides ?? "").trim() || "the defaults"]];
  for (const [name, value] of Object.entries(about ?? {})) {
    if (!["kind", "event", "time_s"].includes(name)) rows.push([name, typeof value === "object" ? JSON.stringify(value) : shown(value)]);
  }
  const first = evals[0], last = evals.at(-1);
  const em = (e) => [
    `EM ${shown(e.em)}${e.em_interval ? ` (${shown(e.em_interval[0])} to ${shown(e.em_interval[1])})` : ""}`, known(e.f1) ? `F1 ${shown(e.f1)}` : null,
    known(e.n) ? `on ${e.n} ${e.samples > 1 ? "episodes" : "questions"}` : null, known(e.faults) ? `${e.faults} faults` : null, // a simulation has none of them
  ].filter(known).join(", ") + (e.refused ? `; refused as a result: ${e.refused}` : "");
  const when = (e) => [`held out, step ${e.step}`, e.series].filter(known).join(", ");
  if (first) rows.push([when(first), em(first)]);
  if (last && last !== first) rows.push([when(last), em(last)]);
  const whole = [["trajectories", summary?.rollouts], ["generated tokens", summary?.generated_tokens], ["seconds", summary?.time_s], ["workers replaced", summary?.restarts]];
  rows.push(...whole.filter(([, value]) => known(value)).map(([name, value]) => [name, shown(value, 0)]));
  return el("table", { id: "facts" }, rows.map(([name, value]) => el("tr", {}, el("th", {}, name), el("td", {}, el("span", { class: "text" }, value)))));
}

function alarmList(run) {
  const alarms = run.run.alarms ?? [];
  return alarms.length ? [heading("Alarms"), alarms.map((a) => el("div", { class: "alarm" },
    el("b", {}, `${a.name}: ${a.what}`), ` (first at step ${a.step}${a.last !== a.step ? `, last at step ${a.last}` : ""})`,
    el("br"), `Look at ${a.look}. ${a.change}`))] : [];
}

function eventTable(run) {
  const rows = run.run.events;
  if (!rows.length) return null;
  const rest = (e) => Object.entries(e).filter(([k]) => !["kind", "event", "time_s", "step"].includes(k)).map(([k, v]) => `${k}: ${typeof v === "object" ? JSON.stringify(v) : shown(v)}`).join(", ");
  return [heading("Events: restarts, checkpoints, faults"), table([
    { name: "at, s", value: (e) => e.time_s ?? null }, { name: "event", value: (e) => e.event, filter: true },
    { name: "step", value: (e) => e.step ?? null }, { name: "what", value: rest, cell: (e) => el("span", { class: "text" }, rest(e)) },
  ], rows, { id: "events" })];
}

function viewRun(runs) {
  const [run] = runs;
  return [
    el("h1", {}, run.label), el("p", { id: "end" }, run.run.end), factsTable(run), alarmList(run), heading("Curves over the steps"),
    el("div", { class: "charts", id: "charts" }, heldOut([run]), CHARTS.map(([title, names, how]) => stepChart(run, title, names, how)), timeChart(run)),
    eventTable(run),
    el("details", {}, el("summary", {}, "Configuration"), el("pre", { id: "config" }, run.run.config ?? "not known")),
  ];
}
