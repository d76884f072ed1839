// The table of groups, and one group: its episodes side by side.

const groupHash = (g) => `#/group/${g.batch}/${g.order ?? 0}/${g.question}`;
const episodesOf = (run, g) => run.episodes(g.batch, g.order ?? 0, g.question);
const questionHash = (question) => `#/question/${question}`;
const marks = (rewards) => (rewards ?? []).map((r) => el("span", { class: `mark ${r > 0.5 ? "good" : "bad"}` }, shown(r, 2)));

function groupColumns(run) {
  return [
    { name: "batch", value: (g) => g.batch },
    { name: "question", value: (g) => run.question(g.question).text, kind: "wide", cell: (g) => link(groupHash(g), run.question(g.question).text) },
    { name: "id", value: (g) => run.question(g.question).id, kind: "id", cell: (g) => link(questionHash(g.question), run.question(g.question).id) },
    { name: "state", value: (g) => g.state, filter: true, about: "what its rewards say: signal, too easy, too hard" },
    { name: "before", value: (g) => g.before, filter: true, about: "what the question was before the draw" },
    { name: "after", value: (g) => g.after, filter: true },
    { name: "accepted", value: (g) => yes(g.accepted), filter: true },
    { name: "recycled", value: (g) => yes(g.recycled), filter: true },
    { name: "draw", value: (g) => g.draw, about: "which draw of this question it is" },
    { name: "reward", value: (g) => mean(g.rewards) },
    { name: "rewards", value: (g) => (g.rewards ?? []).join(" "), cell: (g) => marks(g.rewards) },
    { name: "advantage", value: (g) => (g.advantages?.length ? high(g.advantages) : null), about: "the best member's" },
    { name: "searches", value: (g) => mean(g.searches) },
    { name: "stops", value: (g) => [...new Set(g.stops)].sort().join(" "), filter: true },
    { name: "faults", value: (g) => (g.faults ?? []).length, filter: true },
    { name: "in full", value: () => "", about: "episodes whose turns are in this report", cell: (g) => shown([...episodesOf(run, g).values()].filter((e) => e.turns).length) },
  ];
}

const yes = (value) => (value === null || value === undefined ? null : value ? "yes" : "no");

function viewGroups([run]) {
  if (!run.groups.length) {
    const held = run.evals.questions.length ? [" The episodes of evaluations are under ", link("#/questions", "Questions over time"), "."] : [];
    return [el("h1", {}, "Groups"), el("p", {}, "No group has been logged.", held)];
  }
  return [
    el("h1", {}, "Groups"), el("p", {}, "A row for each group that was played: K episodes of one question. A click opens it; a click on a head sorts."),
    table(groupColumns(run), run.groups, { opens: groupHash, id: "groups", sort: [0, true] }),
  ];
}

/** A question over its `episodes`: one of them has it whole if it is long. */
function about(question, number, episodes) {
  return [
    el("h1", { class: "text" }, episodes.find((e) => e.question)?.question ?? question.text),
    el("p", {}, "right answers: ", el("b", { class: "text" }, question.answers.join(" | ")), question.kind ? `, ${question.kind}` : "", " ",
      link(questionHash(number), "all draws of this question")),
    question.supporting.length ? el("p", { class: "dim" }, "supporting documents: ", el("span", { class: "text" }, question.supporting.join(" | "))) : null,
  ];
}

function viewGroup([run], batch, order, number) {
  const group = run.group(batch, order, number), episodes = run.episodes(batch, order, number), question = run.question(number);
  const members = [...new Set([...(group?.rewards ?? []).keys(), ...episodes.keys()])].sort((a, b) => a - b);
  const facts = group && [["batch", group.batch], ["draw of the question", group.draw], ["state", group.state], ["before", group.before], ["after", group.after],
    ["accepted", yes(group.accepted)], ["recycled", yes(group.recycled)], ["worker", group.worker], ["seconds", group.seconds],
    ["episodes that a fault ended", (group.faults ?? []).join("; ") || "none"],
    ["continued", group.continued === null || group.continued === undefined ? null : group.continued ? "yes, and the worst was replaced" : "yes, and no better"],
    ["cut short by its pilot", group.cut_short ? "yes" : null]];
  return [
    about(question, number, [...episodes.values()]),
    facts && el("p", {}, facts.filter(([, v]) => v !== null && v !== undefined).map(([k, v]) => [el("span", { class: "dim" }, ` ${k} `), shown(v)])),
    el("div", { class: "side", id: "members" }, members.map((m) => {
      const episode = episodes.get(m);
      if (episode) return episodeBox(episode, question, { advantage: group?.advantages?.[m], more: `#/episode/${batch}/${order}/${number}/${m}` });
      return el("div", { class: "episode dim" }, `Member ${m}: reward ${shown(group.rewards[m])}, ${shown(group.searches?.[m])} searches, ${shown(group.stops[m])}.`,
        el("p", {}, "Its turns are not in this report."));
    })),
  ];
}
