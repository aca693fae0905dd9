// The page of trials. An answer is put into the outbox (which survives this page and the server), sent, and counted once
// the server says so; the next trial is shown at once.
//
//   key -> answer -> outbox -> POST answers -> what the server holds
//              `-> next trial, its pictures decoded before it is shown and timed

import { ask, Outbox, post } from "./outbox.js";

const $ = (id) => document.getElementById(id);
const AGAIN_MS = 1500, AHEAD = 2, SIDE_PIXELS = 64, CHOSEN_MS = 120;
const SAID = { left: "left", right: "right", same: "the same", cannot_tell: "cannot tell" };

let known = { person: "", ended: false, trials: [] };
let answers = new Map();             // trial -> answer
let undos = [], at = 0;              // places answered in this window, and the place shown
let ready = false, shownAt = 0;      // are the pictures of the trial to be seen, and since when
let names = null;                    // trial -> which side was which, once asked for

const outbox = new Outbox({
  key: `sides-outbox ${location.pathname}`, address: "answers", command: "pleinair sides", changed: () => paintSaved(),
});

const trial = () => known.trials[at];
const over = () => at >= known.trials.length;

// ---- showing

function picture({ id, prompt }) {
  const image = new Image();
  image.src = `picture/${id}`;
  image.alt = prompt;
  image.draggable = false;
  return image;
}

function fill(place, shown) {
  const images = shown.map(picture);
  $(place).querySelector("ul").replaceChildren(...images.map((image) => {
    const item = document.createElement("li");
    item.append(image);
    return item;
  }));
  return images;
}

async function show() {
  ready = false;
  paintProgress();
  $("trial").hidden = over();
  $("end").hidden = !over();
  if (over()) return showEnd();
  const one = trial();
  $("trial").classList.add("waiting");
  for (const place of ["left", "right"]) $(place).classList.remove("chosen");
  $("question").textContent = one.question;
  $("examples").hidden = !one.examples.length;
  $("examples-title").textContent = one.style ? `${one.style} style looks like this` : "";
  const images = [...fill("left", one.left), ...fill("right", one.right), ...fill("examples", one.examples)];
  fit();
  const decoded = await Promise.allSettled(images.map((image) => image.decode()));
  if (one !== trial()) return;
  if (decoded.some((image) => image.status === "rejected")) { // the server is away: an answer would be about nothing
    outbox.refused = "The pictures cannot be loaded; trying again.";
    paintSaved();
    setTimeout(() => { if (one === trial()) begin().catch(() => show()); }, AGAIN_MS);
    return;
  }
  if (outbox.refused.startsWith("The pictures")) outbox.refused = "";
  $("trial").classList.remove("waiting");
  ready = true;
  shownAt = performance.now();
  $("told").textContent = `Question ${at + 1} of ${known.trials.length}. ${one.question}`;
  paintSaved();
  for (const next of known.trials.slice(at + 1, at + 1 + AHEAD)) [...next.left, ...next.right].forEach(picture);
}

// As large as fits, and every pixel of a picture the same whole number of the screen's pixels.
function fit() {
  if (over()) return;
  const main = $("trial"), style = document.documentElement.style;
  const num = Math.max(trial().left.length, trial().right.length), gap = innerWidth < 736 ? 5 : 8;
  const width = main.clientWidth / 2 - (innerWidth < 736 ? 14 : 28);
  const height = main.clientHeight - $("examples").offsetHeight - 44;
  let best = [0, 1];
  for (let columns = 1; columns <= num; columns++) {
    const rows = Math.ceil(num / columns);
    const room = Math.min((width - gap * (columns - 1)) / columns, (height - gap * (rows - 1)) / rows);
    if (room > best[0]) best = [room, columns];
  }
  const unit = SIDE_PIXELS / devicePixelRatio;
  style.setProperty("--cell", `${Math.max(1, Math.floor(best[0] / unit)) * unit}px`);
  style.setProperty("--columns", best[1]);
}

function showEnd() {
  $("question").textContent = known.ended && !names ? "This session is over" : "Thank you";
  const open = known.trials.length - answers.size;
  $("thanks").textContent = names || known.ended
    ? "Your answers are stored. They can no longer be changed."
    : open ? `${open} are not answered yet.`
    : "All are answered. You may still go back with u. Once you see which side was which, nothing can be changed.";
  $("reveal").hidden = Boolean(names);
  $("names").hidden = !names;
  if (names) $("names").querySelector("tbody").replaceChildren(...known.trials.map(nameRow));
}

function nameRow(one) {
  const told = names.get(one.trial), said = answers.get(one.trial), row = document.createElement("tr");
  const cells = [one.question, told.left, told.right, SAID[said] ?? "", told.about];
  for (const [place, text] of cells.entries()) {
    const cell = document.createElement("td");
    cell.textContent = text;
    if (["left", "right"][place - 1] === said) cell.className = "said";
    row.append(cell);
  }
  return row;
}

function paintProgress() {
  const num = known.trials.length, done = answers.size;
  $("count").textContent = over() ? `${done} of ${num} answered` : `${at + 1} of ${num}`;
  $("bar").setAttribute("aria-valuemax", num);
  $("bar").setAttribute("aria-valuenow", done);
  $("done").style.transform = `scaleX(${num ? done / num : 0})`;
  for (const button of document.querySelectorAll("footer button"))
    button.disabled = button.dataset.do === "undo" ? !undos.length || known.ended : button.dataset.do !== "help" && over();
}

function paintSaved() {
  $("saved").className = outbox.away ? "away" : "";
  $("saved").textContent = outbox.said || `saved, as ${known.person}`;
}

// ---- answering

function answer(said) {
  if (over() || !ready || known.ended) return;
  const one = trial(), seconds = (performance.now() - shownAt) / 1000;
  undos.push(at);
  answers.set(one.trial, said);
  outbox.put({ trial: one.trial, answer: said, seconds });
  ready = false;
  $(said)?.classList?.add("chosen");
  const from = at;
  setTimeout(() => {
    if (at !== from || !answers.has(one.trial)) return; // taken back meanwhile
    at = firstOpen(at + 1);
    show();
  }, CHOSEN_MS);
}

function undo() {
  if (!undos.length || known.ended) return;
  at = undos.pop();
  const one = trial();
  answers.delete(one.trial);
  outbox.put({ trial: one.trial, answer: "withdrawn", seconds: 0 });
  show();
}

// The next without an answer, from a place on and then from the start; behind the last where there is none.
function firstOpen(from) {
  const open = known.trials.map((one, place) => (answers.has(one.trial) ? -1 : place)).filter((place) => place >= 0);
  return open.find((place) => place >= from) ?? open[0] ?? known.trials.length;
}

async function reveal() {
  if (!over() || names || outbox.waiting.length) return;
  try {
    const told = await ask("end", post({}));
    names = new Map(told.sides.map((one) => [one.trial, one]));
    known.ended = true;
    outbox.refused = "";
  } catch (error) { outbox.refused = error.message; }
  show();
  paintSaved();
}

const actions = {
  left: () => answer("left"), right: () => answer("right"), same: () => answer("same"),
  cannot_tell: () => answer("cannot_tell"), undo, reveal,
  help: () => ($("help").open ? $("help").close() : $("help").showModal()),
};
const keys = {
  ArrowLeft: actions.left, ArrowRight: actions.right, " ": actions.same, x: actions.cannot_tell, u: undo,
  Enter: reveal, "?": actions.help,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open && event.key !== "?") return;
  if (event.target.closest("button") && [" ", "Enter"].includes(event.key)) return;
  const act = keys[event.key];
  if (!act) return;
  event.preventDefault();
  if (!event.repeat) act(); // a key held down is one answer
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button) {
    actions[button.dataset.do]();
    if (button.closest("footer") && button.dataset.do !== "help") $("question").focus({ preventScroll: true });
    return;
  }
  const side = event.target.closest(".side");
  if (side) answer(side.id);
});
new ResizeObserver(fit).observe($("trial"));

// ---- the server

async function begin() {
  const place = known.trials[at]?.trial;
  known = await ask("state");
  answers = new Map(known.trials.filter((one) => one.answer).map((one) => [one.trial, one.answer]));
  for (const one of outbox.waiting) // answered, not yet sent
    if (one.answer === "withdrawn") answers.delete(one.trial); else answers.set(one.trial, one.answer);
  const before = known.trials.findIndex((one) => one.trial === place);
  at = before >= 0 && !answers.has(place) ? before : firstOpen(0);
  await show();
  outbox.send();
}

begin().catch((error) => { outbox.refused = error.message; paintSaved(); setTimeout(() => location.reload(), 3000); });
