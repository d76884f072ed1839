// Opens the view that the address names: #/run, #/groups, #/group/BATCH/ORDER/QUESTION, #/episode/BATCH/ORDER/QUESTION/MEMBER, …

const VIEWS = { run: viewRun, groups: viewGroups, questions: questionList, actors: viewActors, compare: viewCompare };
const INNER = { group: [viewGroup, "groups"], episode: [viewEpisode, "groups"], question: [viewQuestion, "questions"] };
const NAMES = { run: "Run", groups: "Groups and episodes", questions: "Questions over time", actors: "Actors", compare: "Compare" };

const aboutPage = dataOf("about");
const runs = aboutPage.runs.map((said) => new Run(said.name, said));

function route() {
  const [name, ...numbers] = (location.hash.slice(2) || (runs.length > 1 ? "compare" : "run")).split("/");
  const [view, place] = VIEWS[name] ? [VIEWS[name], name] : INNER[name] ?? [viewRun, "run"];
  document.getElementById("nav").replaceChildren(
    ...Object.entries(NAMES).map(([key, text]) => { const a = link(`#/${key}`, text); a.className = key === place ? "here" : ""; return a; }),
    el("span", { class: "name" }, `${runs.map((r) => r.label).join(" and ")}, as of ${aboutPage.written}`));
  const main = document.getElementById("main");
  try {
    main.replaceChildren(...view(runs, ...numbers.map(Number)).flat(9).filter((n) => n !== null && n !== undefined));
  } catch (error) {
    main.replaceChildren(el("p", { class: "bad" }, `This part can't be shown: ${error.message}`));
    console.error(error);
  }
  scrollTo(0, 0);
  document.body.dataset.view = location.hash || "#";
}

const notices = aboutPage.runs.flatMap((said) => said.notices.map((text) => (runs.length > 1 ? `${said.label}: ${text}` : text)));
document.getElementById("notices").textContent = visible(notices.join(" · "));
addEventListener("hashchange", route);
route();
