// An episode: what the policy wrote and what it read, turn by turn, and what it was worth. Of a group that was accepted
// the former is trained, the latter masked.

const KINDS = ["", "passage", "passage supporting", "passage supporting found"];

function episodeBox(episode, question, { advantage = null, more = null, tokens = false } = {}) {
  const right = (episode.reward ?? episode.em ?? 0) > 0.5;
  const parts = [["outcome", episode.outcome], ["evidence", episode.evidence], ["gate", episode.gate ? `${episode.gate} closed: the reward is 0` : undefined],
    ["cost", episode.cost || undefined], ["EM", episode.em], ["F1", episode.f1], ["advantage", advantage], ["searches", episode.searches], ["tokens", episode.action_tokens]];
  const trained = Boolean(episode.accepted) && !episode.fault;
  const score = episode.em !== undefined ? episode.em : episode.reward;
  return el("div", { class: "episode" },
    el("div", {}, el("b", {}, nameOf(episode)), " ",
      el("span", { class: right ? "good" : "bad" }, score === undefined ? "no score" : `${episode.em !== undefined ? "EM" : "reward"} ${shown(score)}`), ` ${episode.stop_reason ?? ""} `,
      more ? link(more, "alone") : null),
    el("div", { class: "dim" }, parts.filter(([, v]) => v !== undefined && v !== null).map(([k, v]) => `${k} ${shown(v)}`).join(", ")),
    episode.fault ? el("div", { class: "bad text" }, episode.fault) : null,
    el("div", {}, "answer: ", el("b", { class: "text" }, episode.answer ?? "none")),
    (episode.turns ?? []).map((turn, at) => [
      turnBox(turn, at, tokens, trained),
      episode.inherited_turns === at + 1 ? el("div", { class: "cut" }, "A continuation: what is above was taken over from another episode; from here it was played anew.") : null,
    ]));
}

const nameOf = ({ member, sample }) => (member !== undefined ? `Member ${member}` : sample !== undefined ? `Sample ${sample}` : "Held out");

function turnBox(turn, at, tokens, trained) {
  const notes = (turn.calls ?? []).flatMap((c) => [c.refused ? `${c.tool}: refused, its limit is reached` : null, c.repeat ? `${c.tool}: repeats a ${c.repeat}` : null]).filter(Boolean);
  const searched = (turn.calls ?? []).map((c) => `${c.tool}: ${c.argument}`);
  return el("div", { class: "turn" },
    el("div", { class: "who" }, `turn ${at + 1}, action${trained ? ", trained" : ""}`),
    el("div", { class: "action text" }, tokens && turn.tokens ? tokenSpans(turn) : turn.text ?? ""),
    searched.length ? el("div", { class: "who text" }, `asks ${searched.join("; ")}`) : null,
    turn.found?.length ? el("div", { class: "good" }, `finds ${turn.found.join(", ")}`) : null,
    notes.length ? el("div", { class: "bad" }, notes.join("; ")) : null,
    turn.observation?.length ? [el("div", { class: "who" }, `observation${trained ? ", masked" : ""}`),
      el("div", { class: "observation" }, turn.observation.map(([text, kind]) => el("pre", { class: KINDS[kind] }, text)))] : null);
}

/** The tokens of an action; the less likely one was, the warmer its ground. */
function tokenSpans(turn) {
  const versions = (turn.versions ?? []).flatMap(([version, count]) => Array(count).fill(version));
  return turn.tokens.map((token, i) => {
    const p = turn.logprobs?.[i], grade = p === undefined || p > -1 ? "" : p > -3 ? " unsure" : " surprising";
    const version = versions[i] === -1 ? "an expert wrote it" : `version ${versions[i]}`;
    return el("span", { class: `token${grade}`, title: `log-probability in the engine ${shown(p)}, ${version}` }, token);
  });
}

function tokenTable(episode) {
  const rows = (episode.turns ?? []).flatMap((turn, t) => {
    const versions = (turn.versions ?? []).flatMap(([version, count]) => Array(count).fill(version));
    return (turn.tokens ?? []).map((token, i) => ({ turn: t + 1, at: i, token, p: turn.logprobs?.[i] ?? null, version: versions[i] ?? null }));
  });
  return table([{ name: "turn", value: (r) => r.turn }, { name: "at", value: (r) => r.at }, { name: "token", value: (r) => r.token, cell: (r) => el("span", { class: "text" }, JSON.stringify(r.token)) },
    { name: "log-probability in the engine", value: (r) => r.p }, { name: "version", value: (r) => r.version, filter: true }], rows, { id: "tokens" });
}

function viewEpisode([run], batch, order, number, member) {
  const episodes = run.episodes(batch, order, number), episode = episodes.get(member), question = run.question(number);
  if (!episode) return [about(question, number, []), el("p", {}, "This episode is not in this report.")];
  const group = run.group(batch, order, number), has = (episode.turns ?? []).some((t) => t.tokens);
  const box = el("div", { class: "whole side" }), under = el("div");
  const draw = (tokens) => {
    box.replaceChildren(episodeBox(episode, question, { advantage: group?.advantages?.[member], tokens }));
    under.replaceChildren(...(tokens ? [tokenTable(episode)] : []));
  };
  draw(false);
  return [
    about(question, number, [...episodes.values()]), el("p", {}, link(`#/group/${batch}/${order}/${number}`, `batch ${batch}, the whole group`)),
    el("p", {}, "reward = w · evidence + (1 − w) · outcome − cost, and 0 if a gate closes; w is reward.evidence_weight of the configuration."),
    has ? el("label", {}, el("input", { type: "checkbox", id: "show-tokens", onchange: (e) => draw(e.target.checked) }), " policy version and log-probability of each token")
      : el("p", { class: "dim" }, "The log or this report has no tokens of this episode: tracker.trajectories_per_step and show=[ID] decide."),
    box, under,
  ];
}
