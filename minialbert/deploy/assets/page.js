// The page: entities as one types, classes with their scores, or a search over pasted lines.
import { highest, load } from "./minialbert.js";

const at = (id) => document.getElementById(id);
const [text, pair, answer, state] = ["text", "pair", "answer", "state"].map(at);
const TONES = ["#e4572e", "#2e86ab", "#3a9d5d", "#9b5de5", "#d9a404", "#00a6a6", "#c2255c", "#6c757d"];
const TITLES = { embedding: "Search by meaning", token: "Entities as you type" };
const LONGEST = 200; // lines of a search that are shown
const digits = (score) => score.toFixed(3);

function element(name, content, attributes = {}) {
  const made = document.createElement(name);
  made.append(...[content].flat());
  Object.assign(made, attributes);
  return made;
}

function say(message, isError = false) {
  state.textContent = message;
  state.classList.toggle("error", isError);
}

const VIEWS = {
  token: async (model) => {
    const kinds = [...new Set(model.labels.map((label) => label.slice(2)).filter(Boolean))];
    const result = await model.predict(text.value);
    const parts = [];
    let end = 0;
    for (const entity of result.entities) {
      const mark = element("mark", entity.text, { title: `${entity.label} ${digits(entity.score)}` });
      mark.dataset.label = entity.label;
      mark.style.setProperty("--tone", TONES[kinds.indexOf(entity.label) % TONES.length]);
      parts.push(result.text.slice(end, entity.start), mark);
      end = entity.end;
    }
    return [...parts, result.text.slice(end)];
  },
  classes: async (model) => {
    const result = await model.predict(text.value, model.pairs ? pair.value : undefined);
    if (!result.scores) return [element("p", `Score: ${digits(result.score)}`)];
    const chosen = new Set(result.labels ?? [result.label]);
    return highest(result.scores).map(([label, score]) => {
      const bar = element("div", [label, element("meter", "", { value: score })]);
      return element("div", [digits(score), bar], { className: chosen.has(label) ? "row chosen" : "row" });
    });
  },
  embedding: async (model, isCurrent) => {
    const lines = [...new Set(text.value.split(/\r?\n/).filter((line) => line.trim()))];
    for (const [count, line] of lines.entries()) {
      if (vectors.has(line)) continue;
      say(`Reading line ${count + 1} of ${lines.length} …`);
      vectors.set(line, (await model.embed([line], { normalize: true, prompt: model.prompts.document }))[0]);
      await new Promise((resume) => setTimeout(resume)); // what is typed in between comes first
      if (!isCurrent()) return null;
    }
    if (!pair.value.trim()) return [element("p", `${lines.length} lines read. What are you looking for?`)];
    const [query] = await model.embed([pair.value], { normalize: true, prompt: model.prompts.query });
    const near = (line) => vectors.get(line).reduce((sum, value, place) => sum + value * query[place], 0);
    const found = lines.map((line) => [near(line), line]).sort((one, other) => other[0] - one[0]);
    const row = ([score, line]) => [digits(score), element("span", line, { dir: "auto" })];
    return found.slice(0, LONGEST).map((one) => element("div", row(one), { className: "row" }));
  },
};
const vectors = new Map();

/** Shows the answer to what is typed; where one goes on typing, only the last answer. */
function follow(model) {
  const view = VIEWS[model.problem] ?? VIEWS.classes;
  let turn = 0;
  const update = async () => {
    const mine = ++turn;
    const isCurrent = () => mine === turn;
    try {
      const started = performance.now();
      const shown = await view(model, isCurrent);
      if (!isCurrent()) return;
      answer.replaceChildren(...shown);
      say(`Answered in ${Math.round(performance.now() - started)} ms.`);
    } catch (error) {
      if (isCurrent()) say(error.message, true);
    }
  };
  for (const field of [text, pair]) field.addEventListener("input", update);
  return update();
}

function arrange(model) {
  const isSearch = model.problem === "embedding";
  at("title").textContent = TITLES[model.problem] ?? "Classes as you type";
  if (isSearch) {
    at("name").textContent = "Lines to search";
    at("other").textContent = "What are you looking for?";
    pair.rows = 1;
  }
  at("second").hidden = !(isSearch || model.pairs);
  at("main").hidden = false;
}

/** Lets the service worker fetch every file once; the page then reads them from it, with or without a network. */
async function prepareOffline() {
  if (!navigator.serviceWorker) return;
  await navigator.serviceWorker.register("service-worker.js");
  await navigator.serviceWorker.ready;
  for (let waits = 0; waits < 40 && !navigator.serviceWorker.controller; waits++)
    await new Promise((done) => setTimeout(done, 50));
}

try {
  await prepareOffline().catch((error) => console.warn(`without a service worker: ${error.message}`));
  const model = await load();
  arrange(model);
  await follow(model);
  document.documentElement.dataset.loaded = Math.round(performance.now());
} catch (error) {
  say(error.message, true);
}
