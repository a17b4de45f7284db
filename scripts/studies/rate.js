"use strict";
// One item at a time. The address has the rater's name, so that it resumes; the code stays in this
// tab. A second key is ignored until the first one's answer is saved and the next item appears.

const at = (id) => document.getElementById(id);
const MEANING = {
  question: "Do the marked tokens share one meaning?",
  hint: "Underlined once: weak; twice: middle; bold in a box: strong. The strongest windows come " +
    "first, then a sample down to the weakest.",
  choices: [["yes", "Yes"], ["maybe", "Maybe"], ["no", "No"]],
};
const INTRUDER = {
  question: "Which window does not belong to the others?",
  hint: "The same thing marks four of them, and another thing one. The box is the strongest token.",
  choices: [0, 1, 2, 3, 4].map((i) => [i, "Window"]),
};
const STRENGTH = ["", "weak", "middle", "strong"];
const state = { rater: "", code: kept("code"), page: null, since: 0, looked: 0 };
let busy = false;

// A browser may refuse storage to a page inside another site's, as a Space's is on the Hub: then
// the code is asked for again after a reload.
function kept(name, value) {
  try {
    if (value !== undefined) sessionStorage.setItem(name, value);
    return sessionStorage.getItem(name) || "";
  } catch {
    return "";
  }
}

function show(id) {
  for (const part of ["start", "rate", "done"]) at(part).hidden = part !== id;
  document.querySelector("header").hidden = id === "start";
}

async function ask(path, body) {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    const headers = { "X-Code": encodeURIComponent(state.code) };
    if (body) headers["Content-Type"] = "application/json";
    const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
    const response = await fetch(path, options);
    const content = await response.json();
    if (response.ok) draw(content);
    else refused(response.status, content.error);
  } catch {
    at("wrong").textContent = "The server does not answer: nothing was saved. Try again.";
  } finally {
    busy = false;
    document.body.classList.remove("busy");
  }
}

function refused(status, sentence) {
  if (status === 401) {
    at("code-line").hidden = false;
    at("name").value = state.rater;
    show("start");
    at("code").focus();
  }
  at("wrong").textContent = sentence === "code" ? "" : sentence;
}

function draw(page) {
  state.page = page;
  state.rater = page.rater;
  at("wrong").textContent = "";
  progress(page);
  if (page.done) return finished(page);
  show("rate");
  const kind = page.question === "intruder" ? INTRUDER : MEANING;
  at("question").textContent = kind.question;
  at("hint").textContent = kind.hint;
  at("windows").replaceChildren(...page.windows.map(drawn));
  at("windows").className = page.question;
  at("words-line").hidden = kind === INTRUDER;
  at("words").value = page.words || "";
  at("choices").replaceChildren(...kind.choices.map((choice, i) => button(choice, i, page)));
  at("choices").className = page.question;
  scrollTo(0, 0);
  at("question").focus({ preventScroll: true });
  state.looked = 0;
  state.since = document.hidden ? 0 : performance.now();
}

function progress(page) {
  const bar = document.querySelector(".bar");
  bar.setAttribute("aria-valuemax", page.n);
  bar.setAttribute("aria-valuenow", page.n_done);
  bar.firstElementChild.style.setProperty("width", `${(100 * page.n_done) / page.n}%`);
  const minutes = page.seconds_left === null ? 0 : Math.ceil(page.seconds_left / 60);
  const left = minutes ? `, about ${minutes} min left` : "";
  const place = page.done ? "" : `item ${page.at + 1} of ${page.n}, `;
  at("progress").textContent = `${place}${page.n_done} answered${page.done ? "" : left}`;
  at("who").textContent = page.rater;
}

function finished(page) {
  show("done");
  at("skipped").hidden = !page.skipped.length;
  at("skipped").textContent = `Look at the skipped ones (${page.skipped.length})`;
  document.querySelector("#done h1").focus();
}

function drawn(window) {
  const line = document.createElement("li");
  const texts = window.tokens.map((token, i) => (i ? token : token.trimStart()));
  texts.forEach((token, i) => {
    const strength = Number(window.marks[i]);
    if (!strength || !token) return line.append(token);
    const blank = token.length - token.trimStart().length; // marks begin at the word
    line.append(token.slice(0, blank));
    const mark = document.createElement("mark");
    mark.className = `m${strength}`;
    const spoken = document.createElement("span");
    spoken.className = "spoken";
    spoken.textContent = `[${STRENGTH[strength]}] `;
    mark.append(spoken, token.slice(blank) || "␣");
    line.append(mark);
  });
  return line;
}

function button([value, text], i, page) {
  const made = document.createElement("button");
  made.type = "button";
  const key = document.createElement("kbd");
  key.textContent = i + 1;
  const label = document.createElement("span");
  label.textContent = ` ${text}`;
  made.append(key, label);
  if (page.question === "intruder") made.setAttribute("aria-label", `Window ${i + 1}`);
  const chosen = page.answer === value;
  made.setAttribute("aria-pressed", chosen);
  if (chosen) made.append(" ✓");
  made.addEventListener("click", () => answer(value));
  return made;
}

function seconds() {
  const now = state.since ? performance.now() - state.since : 0;
  return Math.round((state.looked + now) / 10) / 100;
}

function answer(value) {
  const { item } = state.page;
  const words = at("words").value;
  ask("answer", { rater: state.rater, item, answer: value, words, seconds: seconds() });
}

const ACTIONS = {
  back: () => state.page.at > 0 && go(state.page.at - 1),
  forward: () => state.page.at < state.page.n && go(state.page.at + 1),
  undo: () => ask("undo", { rater: state.rater }),
  skip: () => !state.page.done && answer(null),
};

function go(place) {
  const where = place === null ? "" : `&at=${place}`;
  ask(`item?rater=${encodeURIComponent(state.rater)}${where}`);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !state.page || !at("start").hidden) return;
  if (event.target.matches("input, textarea, select")) {
    if (event.key === "Escape" || event.key === "Enter") event.target.blur();
    return;
  }
  const keys = { u: "undo", s: "skip", ArrowLeft: "back", ArrowRight: "forward" };
  const choices = at("choices").children;
  if (event.repeat) return;
  if (!at("rate").hidden && event.key >= "1" && event.key <= String(choices.length)) {
    choices[Number(event.key) - 1].click();
  } else if (keys[event.key]) {
    ACTIONS[keys[event.key]]();
  } else if (event.key === "/" && !at("words-line").hidden) {
    at("words").focus();
  } else return;
  event.preventDefault();
});

document.addEventListener("visibilitychange", () => { // only time in view counts
  if (document.hidden) {
    state.looked += state.since ? performance.now() - state.since : 0;
    state.since = 0;
  } else state.since = performance.now();
});

for (const made of document.querySelectorAll("[data-do]")) {
  made.addEventListener("click", () => ACTIONS[made.dataset.do]());
}
at("skipped").addEventListener("click", () => go(state.page.skipped[0]));
at("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  state.rater = at("name").value.trim();
  state.code = at("code").value || state.code;
  kept("code", state.code);
  history.replaceState(null, "", `?rater=${encodeURIComponent(state.rater)}`);
  go(null);
});

state.rater = new URLSearchParams(location.search).get("rater") || "";
if (state.rater) go(null);
else {
  show("start");
  at("name").focus();
}
