// The picker's page. What the server says is the truth; a decision is painted at once, put into the outbox (which
// survives this page and the server), sent, and painted again as the server tells it.
//
//   key -> decide -> paint            outbox -> POST events -> picks of the server -> paint
//                 `-> outbox          every two seconds: GET news -> picks of others -> paint

import { ask, load, Outbox, store } from "./outbox.js";

const $ = (id) => document.getElementById(id);
const grid = $("grid"), scroller = $("scroller"), large = $("large");
const UNDO = "pick-undo", NEWS_MS = 2000, GAP = 12, SPARE_ROWS = 3, AHEAD = [1, 2, 3, 4, 5, 6, -1, -2];
const NOTHING = { decision: "clear", position: null, person: "" };

let known = { boot: "", version: 0, person: "", domains: [], candidates: [] };
let pictures = new Map();            // name -> what the server says of it
let picks = new Map();               // domain -> name -> {decision, position, person}
let tiles = new Map();               // name -> its list item
let domain = "", ordering = false, single = false, zoomed = false;
let shown = [], at = 0;              // names in the list, and the place of the current one
let undos = load(UNDO);
let fetched = new Map();             // pictures asked for ahead, by address
let columns = 1, cell = 160, left = 0, height = 600;   // of the grid, in pixels; measured when its size changes

const outbox = new Outbox({
  key: "pick-outbox", address: "events", command: "pleinair pick", changed: () => paintSaved(), told: ({ picks }) => take(picks),
});

const pick = (name, of = domain) => picks.get(of)?.get(name) || NOTHING;
function set(of, name, value) {
  if (!picks.has(of)) picks.set(of, new Map());
  picks.get(of).set(name, value);
}
function chosen(of) {
  const kept = [...(picks.get(of) || [])].filter(([name, one]) => one.decision === "keep" && pictures.has(name));
  return kept.sort(([a, x], [b, y]) => x.position - y.position || (a < b ? -1 : 1)).map(([name]) => name);
}

// ---- painting

function tile(name) {
  let item = tiles.get(name);
  if (item) return item;
  item = document.createElement("li");
  item.setAttribute("role", "option");
  item.tabIndex = -1;
  item.dataset.name = name;
  const image = new Image();
  image.alt = ""; image.draggable = false;
  image.onerror = () => item.classList.add("gone");
  image.src = `thumb/${pictures.get(name).id}`;
  item.append(image);
  tiles.set(name, item);
  return item;
}

function paint(name) {
  const item = tiles.get(name), { decision } = pick(name);
  if (!item) return;
  item.classList.toggle("keep", decision === "keep");
  item.classList.toggle("discard", decision === "discard");
  item.setAttribute("aria-selected", decision === "keep");
  item.setAttribute("aria-label", `${title(name)}, ${said(name)}`);
}
const title = (name) => pictures.get(name).label || pictures.get(name).caption_long || name;
const said = (name) => ({ keep: "kept", discard: "discarded", clear: "undecided" })[pick(name).decision];

function paintList() {
  const current = shown[at];
  shown = ordering ? chosen(domain) : known.candidates;
  const found = shown.indexOf(current);
  at = found >= 0 ? found : Math.max(0, Math.min(at, shown.length - 1));
  grid.classList.toggle("ordered", ordering);
  grid.setAttribute("aria-label", ordering ? `the set ${domain}, in order` : `pictures, for the set ${domain}`);
  $("empty").hidden = shown.length > 0;
  $("empty").textContent = `Nothing is in the set ${domain} yet: press o to go back, space to keep a picture.`;
  paintView();
}

// Only the rows in view are in the document: with a thousand tiles in it, painting one took 40 ms of a busy core.
function paintRows() {
  const rows = Math.ceil(shown.length / columns), top = scroller.scrollTop;
  const first = Math.max(0, Math.floor(top / cell) - SPARE_ROWS) * columns;
  const last = Math.min(rows, Math.ceil((top + height) / cell) + SPARE_ROWS) * columns;
  const places = shown.slice(first, last).map((_, number) => first + number);
  if (shown.length && (at < first || at >= last)) places.push(at); // the focus must not fall out of the document
  const wanted = new Map(places.map((place) => [shown[place], place]));
  for (const item of [...grid.children]) if (!wanted.has(item.dataset.name)) item.remove();
  for (const [name, place] of wanted) {
    const item = tile(name);
    item.style.transform = `translate(${left + (place % columns) * cell}px, ${Math.floor(place / columns) * cell}px)`;
    item.dataset.place = place + 1;
    item.draggable = ordering;
    item.setAttribute("aria-posinset", place + 1);
    item.setAttribute("aria-setsize", shown.length);
    paint(name);
    if (!item.isConnected) grid.append(item);
  }
  grid.style.height = `${rows * cell}px`;
}

function measure() {
  if (!scroller.clientWidth) return;
  const size = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--tile")) * 16;
  const style = getComputedStyle(scroller), width = scroller.clientWidth - 2 * parseFloat(style.paddingLeft);
  cell = size + GAP;
  columns = Math.max(1, Math.floor((width + GAP) / cell));
  left = Math.max(0, (width - columns * cell + GAP) / 2);
  height = scroller.clientHeight;
  paintRows();
}

function paintView() {
  document.body.classList.toggle("ordering", ordering);
  scroller.hidden = single || !shown.length;
  if (!single) measure();
  $("single").hidden = !single || !shown.length;
  for (const [name, on] of [["single", single], ["zoom", single && zoomed], ["order", ordering]])
    document.querySelector(`[data-do=${name}]`).setAttribute("aria-pressed", on);
  paintCurrent();
  paintCounts();
}

function paintCurrent() {
  const name = shown[at];
  if (!name) return;
  if (single) paintLarge(name); else focusTile(name);
  $("told").textContent = single ? `${title(name)}, ${said(name)}, ${at + 1} of ${shown.length}` : "";
  lookAhead();
}

function focusTile(name) {
  const top = Math.floor(at / columns) * cell, from = scroller.scrollTop;
  if (top < from) scroller.scrollTop = top;
  else if (top + cell + GAP > from + height) scroller.scrollTop = top + cell + 2 * GAP - height;
  if (scroller.scrollTop !== from || !tiles.get(name)?.isConnected) paintRows();
  grid.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
  const item = tiles.get(name);
  item.tabIndex = 0;
  item.focus({ preventScroll: true });
}

function paintLarge(name) {
  const one = pictures.get(name);
  const address = `${zoomed ? "full" : "view"}/${one.id}`;
  $("single").classList.toggle("zoomed", zoomed);
  if (large.getAttribute("src") !== address) large.src = address;
  large.alt = one.caption_long || title(name);
  $("mark").className = pick(name).decision;
  $("mark").textContent = `${said(name)}${pick(name).person && pick(name).decision !== "clear" ? ` by ${pick(name).person}` : ""}`;
  $("caption").textContent = one.caption_long || one.label || "";
  const size = one.width ? `${one.width} x ${one.height}` : "";
  $("facts").textContent = [`${at + 1} of ${shown.length}`, one.name, size, one.source, one.licence, one.author].filter(Boolean).join("\n");
  $("frame").focus({ preventScroll: true });
}

function paintCounts() {
  const of = picks.get(domain) || new Map();
  let kept = 0, gone = 0, open = known.candidates.length;
  for (const [name, { decision }] of of) {
    if (decision === "keep" && pictures.has(name)) kept++;
    if (decision === "discard") gone++;
  }
  for (const name of known.candidates) if (pick(name).decision !== "clear") open--;
  $("counts").textContent = `${kept} kept, ${gone} discarded, ${open} of ${known.candidates.length} to go`;
  const buttons = $("domains").children;
  known.domains.forEach((name, number) => {
    buttons[number].setAttribute("aria-checked", name === domain);
    buttons[number].lastElementChild.textContent = name === domain ? kept : count(name);
  });
}
const count = (of) => [...(picks.get(of)?.values() || [])].filter((one) => one.decision === "keep").length;

function paintDomains() {
  $("domains").replaceChildren(...known.domains.map((name, number) => {
    const button = document.createElement("button");
    button.setAttribute("role", "radio");
    if (number < 9) button.setAttribute("aria-keyshortcuts", number + 1);
    button.append(number < 9 ? `${number + 1} ${name}` : name, document.createElement("small"));
    button.onclick = () => { changeDomain(number); };
    return button;
  }));
}

function paintSaved() {
  $("saved").className = outbox.away ? "away" : "";
  $("saved").textContent = outbox.said || `saved, as ${known.person}`;
}

function lookAhead() {
  if (!single) return;
  const wanted = AHEAD.map((step) => shown[at + step]).filter(Boolean).map((name) => `${zoomed ? "full" : "view"}/${pictures.get(name).id}`);
  for (const address of wanted) {
    if (fetched.has(address)) continue;
    const image = new Image();
    image.src = address;
    image.decode().catch(() => {});
    fetched.set(address, image);
  }
  for (const old of [...fetched.keys()].slice(0, Math.max(0, fetched.size - 40))) fetched.delete(old);
}

// ---- deciding

function decide(decision, of = domain) {
  const name = shown[at];
  if (!name) return;
  const before = pick(name, of);
  if (before.decision !== decision) {
    remember(of, name, before);
    wish({ image_name: name, domain: of, decision });
  }
  if (of === domain && ordering && decision !== "keep") paintList();
  else if (of === domain) step(1);
  else paintCounts();
}

function wish(wanted) {
  const { image_name: name, domain: of, decision } = wanted, before = pick(name, of);
  const position = wanted.position ?? (decision === "keep" ? end(of) : before.position);
  set(of, name, { decision: decision === "move" ? before.decision : decision, position, person: known.person });
  const { guess, ...sent } = wanted;
  if (guess !== undefined) pick(name, of).position = guess;
  if (of === domain) { paint(name); }
  outbox.put(sent);
}
const end = (of) => Math.max(0, ...[...(picks.get(of)?.values() || [])].filter((one) => one.decision === "keep").map((one) => one.position)) + 1;

function remember(of, name, before) {
  undos.push({ of, name, before });
  undos = undos.slice(-200);
  store(UNDO, undos);
}

function undo() {
  const last = undos.pop();
  store(UNDO, undos);
  if (!last || !pictures.has(last.name)) return;
  const { of, name, before } = last;
  if (before.decision === "keep") {
    const decision = pick(name, of).decision === "keep" ? "move" : "keep";
    wish({ image_name: name, domain: of, decision, position: before.position });
  } else wish({ image_name: name, domain: of, decision: before.decision });
  domain = of;
  paintList();
  if (shown.includes(name)) go(shown.indexOf(name));
}

function move(by) {
  const name = shown[at], to = at + by;
  if (!ordering || !name || to < 0 || to >= shown.length) return;
  moveBefore(name, by > 0 ? shown[to + 1] ?? null : shown[to]);
}

function moveBefore(name, before) {
  const others = shown.filter((one) => one !== name);
  const place = before === null ? others.length : others.indexOf(before);
  const low = place ? pick(others[place - 1]).position : pick(others[0]).position - 2;
  const guess = before === null ? end(domain) : (low + pick(before).position) / 2;
  remember(domain, name, pick(name));
  wish({ image_name: name, domain, decision: "move", before, guess });
  paintList();
}

// ---- going about

function go(place) {
  at = Math.max(0, Math.min(place, shown.length - 1));
  paintCurrent();
  if (single) paintCounts();
}
function step(by) { go(at + by); paintCounts(); }
function row(by) { step(single ? by : by * columns); }
function nextOpen() {
  const found = shown.findIndex((name, place) => place > at && pick(name).decision === "clear");
  if (found >= 0) go(found);
}
function changeDomain(number) {
  if (!known.domains[number]) return;
  domain = known.domains[number];
  paintList();
}
function show(one, zoom = false) { single = one; zoomed = one && zoom; paintView(); }

const actions = {
  keep: () => decide("keep"), discard: () => decide("discard"), undo,
  single: () => show(!single), zoom: () => (single && zoomed ? show(true) : show(true, true)),
  order: () => { ordering = !ordering; paintList(); },
  earlier: () => move(-1), later: () => move(1),
  help: () => ($("help").open ? $("help").close() : $("help").showModal()),
};
const keys = {
  j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
  ArrowDown: () => row(1), ArrowUp: () => row(-1), PageDown: () => row(4), PageUp: () => row(-4),
  Home: () => go(0), End: () => go(shown.length - 1), " ": actions.keep, x: actions.discard, u: undo, n: nextOpen,
  Enter: actions.single, Escape: () => (single ? show(false) : ordering && actions.order()), z: actions.zoom,
  o: actions.order, J: actions.later, K: actions.earlier, "?": actions.help,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open && event.key !== "?") return;
  if (event.target.closest("button") && [" ", "Enter"].includes(event.key)) return;
  const digit = /^Digit([1-9])$/.exec(event.code)?.[1];
  const act = digit ? () => (event.shiftKey ? keepFor(digit - 1) : changeDomain(digit - 1)) : keys[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
function keepFor(number) { if (known.domains[number]) decide("keep", known.domains[number]); }

document.querySelector("footer").addEventListener("click", (event) => actions[event.target.closest("button")?.dataset.do]?.());
grid.addEventListener("click", (event) => { const item = event.target.closest("li"); if (item) go(shown.indexOf(item.dataset.name)); });
grid.addEventListener("dblclick", () => show(true));

scroller.addEventListener("scroll", paintRows, { passive: true });
new ResizeObserver(measure).observe(scroller);

let dragged = null;
grid.addEventListener("dragstart", (event) => { dragged = event.target.closest("li")?.dataset.name; event.dataTransfer.effectAllowed = "move"; });
grid.addEventListener("dragover", (event) => {
  const over = event.target.closest("li");
  if (!dragged || !over) return;
  event.preventDefault();
  grid.querySelector(".over")?.classList.remove("over");
  over.classList.add("over");
});
grid.addEventListener("drop", (event) => {
  const before = event.target.closest("li")?.dataset.name;
  if (dragged && before && before !== dragged) { event.preventDefault(); at = shown.indexOf(dragged); moveBefore(dragged, before); }
});
grid.addEventListener("dragend", () => { dragged = null; grid.querySelector(".over")?.classList.remove("over"); });

// ---- the server

function take(told) {
  const waiting = new Set(outbox.waiting.map((one) => `${one.domain}\n${one.image_name}`));
  let reorder = false;
  for (const one of told) {
    if (waiting.has(`${one.domain}\n${one.name}`)) continue;
    const before = pick(one.name, one.domain);
    set(one.domain, one.name, { decision: one.decision, position: one.position, person: one.person });
    if (one.domain !== domain) continue;
    paint(one.name);
    reorder ||= ordering && (before.decision !== one.decision || before.position !== one.position);
  }
  if (reorder) paintList(); else if (told.length) paintCounts();
}

async function news() {
  if (!document.hidden && known.boot) {
    try {
      const told = await ask(`news?boot=${known.boot}&version=${known.version}`);
      if (told.boot !== known.boot || !told.picks) await begin();
      else {
        known.version = told.version;
        for (const one of told.pictures) if (!pictures.has(one.name)) pictures.set(one.name, one);
        const strange = told.picks.some((one) => !known.domains.includes(one.domain));
        if (strange) await begin(); else take(told.picks);
      }
      if (outbox.waiting.length) outbox.send();
    } catch { /* the server is away: what is decided stays in the outbox */ }
  }
  setTimeout(news, NEWS_MS);
}

async function begin() {
  const state = await ask("state");
  known = state;
  pictures = new Map(state.pictures.map((one) => [one.name, one]));
  picks = new Map();
  for (const one of state.picks) set(one.domain, one.name, { decision: one.decision, position: one.position, person: one.person });
  for (const one of outbox.waiting) // decided, not yet sent
    if (pictures.has(one.image_name) && one.decision !== "move")
      set(one.domain, one.image_name, { ...pick(one.image_name, one.domain), decision: one.decision, position: one.position ?? end(one.domain) });
  tiles = new Map([...tiles].filter(([name]) => pictures.has(name)));
  if (!known.domains.includes(domain)) domain = known.domains[0];
  paintDomains();
  paintList();
  outbox.send();
}

begin().then(() => nextOpenFrom(0)).catch((error) => { outbox.refused = error.message; paintSaved(); }).finally(news);
function nextOpenFrom(place) { // a person goes on where they stopped
  at = place;
  if (shown.length && pick(shown[0]).decision !== "clear") nextOpen();
  paintCurrent();
}
