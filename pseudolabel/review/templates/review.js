// The review page: which image is open, what the keys do, what is written. stage.js draws, queue.js lists.

import { offerClasses, offerViews, showAbout, showCounts } from "./about.js";
import { $, bytes, read, readJson, send, tell, tried } from "./common.js";
import { STATES, showDecision } from "./decision.js";
import { nextTool, pageKey } from "./keys.js";
import { Queue, filters, listenToFilters, offerFilters } from "./queue.js";
import { Stage, runsOf } from "./stage.js";
import { listenToTuning, showTuning, tuned } from "./tuning.js";

const app = $("app");
const AHEAD = 2, KEPT = 8;

let store = null; // classes and settings
let item = null; // the image on the desk
let base = "machine"; // the mask that is drawn on: machine, correction or retuned
let made = null; // settings of a retuned mask
let opening = null, retuning = null;
const past = []; // decisions that can be undone, the last one at the end
const waiting = new Map(); // images that were asked for, by id
const drafts = new Map(); // masks that were drawn on and left without saving, by id
const stage = new Stage(showEdited, showUnder);
const queue = new Queue(open, showCounts);

// Opening an image ---------------------------------------------------------------------------------------------------

function load(id) {
  if (!waiting.has(id)) {
    const parts = Promise.all([
      readJson("/api/item", { id }),
      read("/image", { id }).then((answer) => answer.blob()).then((blob) => createImageBitmap(blob)).catch(() => null),
      bytes(read("/mask", { id })).catch(() => null),
    ]);
    parts.catch(() => waiting.delete(id));
    waiting.set(id, parts);
    for (const old of waiting.keys()) {
      if (waiting.size <= KEPT) break;
      waiting.delete(old);
    }
  }
  return waiting.get(id);
}

async function open(at) {
  const id = queue.ids[at];
  if (id === undefined) return;
  queue.select(at);
  opening = id;
  const late = setTimeout(() => { $("busy").hidden = false; }, 150);
  const parts = await tried(() => load(id));
  clearTimeout(late);
  $("busy").hidden = true;
  if (opening !== id || !parts) return;
  if (item && item.id !== id && stage.drawn) {
    drafts.set(item.id, { base, made, ids: stage.ids });
    tell(`${item.shown} was drawn on and is not saved; it is as you left it when you come back.`);
  }
  const [found, bitmap, ids] = parts;
  item = found;
  history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  base = item.review.correction ? "correction" : "machine";
  made = null;
  stage.load(bitmap, ids && ids.slice(), item.width, item.height);
  stage.bitmap = bitmap;
  const draft = drafts.get(id);
  if (draft && stage.ids) {
    [base, made] = [draft.base, draft.made];
    stage.strokes = [stage.ids];
    stage.ids = draft.ids;
    stage.paint();
    drafts.delete(id);
  }
  showItem();
  for (let next = at + 1; next <= at + AHEAD && next < queue.ids.length; next++) load(queue.ids[next]).catch(() => {});
  if ($("t-all").checked && item.retunable && !item.review.correction && !draft) await retune();
  else showTuning(store, item);
}

const go = (step) => open(Math.min(queue.ids.length - 1, Math.max(0, queue.at + step)));

// Showing ------------------------------------------------------------------------------------------------------------

function showItem() {
  showAbout(item, queue.at, queue.ids.length);
  offerClasses(item, store);
  stage.value = Number($("draw").value);
  offerViews(item, store, (view) => setView($("view").value === view ? "mask" : view));
  setView("mask");
  showDecision(item, toggleWrong);
  showEdited();
}

const changed = () => stage.drawn || base === "retuned";

function showEdited() {
  if (!item) return;
  const what = base === "retuned" ? "Retuned" : base === "correction" ? "Corrected mask" : "The machine's mask";
  $("edited").textContent = `${what}${stage.drawn ? ", drawn on" : ""}${changed() ? ": not saved" : ""}.`;
  $("save").disabled = !changed();
  $("drop").disabled = !changed() && !item.review.correction;
}

function showUnder(id) {
  $("under").textContent = id === null ? "\u00a0" : id === 255 ? "undecided (255)" : store.classes[id].name;
}

function setView(view) {
  if (![...$("view").options].some((one) => one.value === view)) return;
  $("view").value = view;
  for (const button of document.querySelectorAll("#heats button")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === view));
  }
  tried(async () => {
    const id = item.id;
    stage.visible = view === "mask";
    let shown = stage.bitmap;
    if (view.startsWith("heat ")) {
      const answer = await read("/heat", { id, label: view.slice(5), v: item.machine.slice(0, 12) });
      shown = await createImageBitmap(await answer.blob());
    }
    const other = view === "predictions" ? await bytes(read("/mask", { id, which: "predictions" })) : null;
    if (item.id !== id || $("view").value !== view) return;
    stage.setPicture(shown);
    if (other) {
      const own = stage.ids;
      stage.ids = other;
      stage.visible = true;
      stage.paint();
      [stage.ids, stage.visible] = [own, false];
    } else stage.paint();
  });
}

// Decisions ----------------------------------------------------------------------------------------------------------

const who = () => $("who").value.trim();

/** Send a decision about the image on the desk; it can be undone. */
async function write(path, body) {
  const before = { ...item.review }, id = item.id, at = queue.at;
  const answer = await tried(async () => (await send(path, { id, machine: item.machine, who: who(), lines: before.lines, ...body })).json());
  if (!answer) return false;
  take(answer, id);
  past.push({ id, at, before });
  return true;
}

function take(answer, id) {
  waiting.delete(id);
  queue.update(answer.row);
  showCounts(answer.counts);
  if (answer.meanwhile) tell(`${answer.meanwhile} decided about this image meanwhile; both are kept, the last counts.`);
  if (item && item.id === id) {
    item.review = answer.review;
    item.mask = answer.review.correction || item.machine;
    showDecision(item, toggleWrong);
    showEdited();
  }
}

// What is pressed while something is written waits for it; but a decision is never about an image that is not shown yet.
let turn = Promise.resolve();
const inTurn = (work) => (...given) => { turn = turn.then(() => work(...given)); return turn; };
const ready = () => item && opening === item.id;

let writing = false;
async function decide(decision) {
  if (!ready() || writing) return;
  writing = true;
  try {
    await turn;
    if (!ready()) return;
    const saved = decision === "accept" && changed() ? await save(decision) : await write("/api/decide", { decision, mask: item.mask || item.machine });
    if (!saved) return;
    tell(`${STATES[decision]}: ${item.shown}`);
    if (queue.at + 1 < queue.ids.length) await go(1);
    else tell("That was the last image of this queue.");
  } finally {
    writing = false;
  }
}

/** Write the mask as it is seen, and accept it. */
async function save(decision = "accept") {
  const settings = base === "retuned" ? made : null;
  const done = await write("/api/correct", { decision, base, settings, runs: runsOf(stage.ids) });
  if (!done) return false;
  base = "correction";
  stage.strokes = [];
  showEdited();
  return true;
}

const saveCorrected = inTurn(async () => {
  if (!ready() || !changed()) return;
  if (await save()) tell("The corrected mask was saved and accepted.");
});

const toMachine = inTurn(async () => {
  if (!ready()) return;
  if (item.review.correction) {
    if (!await write("/api/decide", { correction: "", decision: "none", mask: item.machine })) return;
  }
  const ids = await tried(() => bytes(read("/mask", { id: item.id, which: "machine" })));
  if (!ids) return;
  [base, made] = ["machine", null];
  stage.setMask(ids);
  showTuning(store, item);
  showEdited();
});

const toggleWrong = inTurn(async (index) => {
  const label = ready() && item.labels[index];
  if (!label) return;
  const wrong = item.review.wrong.includes(label.id) ? item.review.wrong.filter((id) => id !== label.id) : [...item.review.wrong, label.id];
  await write("/api/decide", { wrong, mask: item.mask || item.machine });
});

const undo = inTurn(async () => {
  if (stage.undoStroke()) return;
  const last = past.pop();
  if (!last) return tell("There is nothing to undo.");
  const { before } = last;
  if (!item || item.id !== last.id) {
    const at = queue.ids[last.at] === last.id ? last.at : queue.ids.indexOf(last.id);
    if (at >= 0) await open(at);
    if (!item || item.id !== last.id) return tell("That image is not in this queue; clear the filters to undo it.", true);
  }
  const body = { id: last.id, decision: before.decision, wrong: before.wrong, machine: item.machine, mask: before.correction || item.machine, who: who() };
  if (before.correction !== item.review.correction) Object.assign(body, { correction: before.correction, settings: before.settings });
  const answer = await tried(async () => (await send("/api/decide", body)).json());
  if (!answer) return past.push(last);
  take(answer, last.id);
  tell(`Undone: ${item.shown} is as before.`);
  if ("correction" in body) await open(queue.at);
});

// Retuning -----------------------------------------------------------------------------------------------------------

async function retune() {
  showTuning(store, item);
  if (!item || !item.retunable) return;
  if (retuning) retuning.abort();
  retuning = new AbortController();
  const id = item.id, settings = tuned();
  const ids = await tried(() => bytes(send("/api/retune", { id, settings }, retuning.signal)));
  if (!ids || item.id !== id) return;
  [base, made] = ["retuned", settings];
  stage.setMask(ids);
  if ($("view").value !== "mask") setView("mask");
  showEdited();
}

// Keys and buttons ---------------------------------------------------------------------------------------------------

function setTool(tool) {
  stage.tool = tool;
  stage.dropPolygon();
  for (const button of document.querySelectorAll("[data-tool]")) {
    const chosen = button.dataset.tool === tool;
    button.setAttribute("aria-checked", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
  }
  $("draw").disabled = tool === "look" || tool === "eraser";
  if (tool !== "look") setView("mask");
}

function setSize(size) {
  stage.size = Math.min(80, Math.max(1, size));
  $("size").value = stage.size;
  $("size-value").textContent = stage.size;
}

function setDraw(value) {
  $("draw").value = value;
  stage.value = Number(value);
}

const KEYS = {
  a: () => decide("accept"), r: () => decide("reject"), s: () => decide("skip"), z: undo,
  ArrowRight: () => go(1), ArrowLeft: () => go(-1), ArrowDown: () => go(1), ArrowUp: () => go(-1),
  b: () => setTool("brush"), e: () => setTool("eraser"), p: () => setTool("polygon"), v: () => setTool("look"),
  c: () => { const options = $("draw").options; setDraw(options[($("draw").selectedIndex + 1) % options.length].value); setTool(stage.tool === "look" ? "brush" : stage.tool); },
  u: () => { setDraw("255"); setTool(stage.tool === "polygon" ? "polygon" : "brush"); },
  "[": () => setSize(stage.size - Math.max(1, Math.round(stage.size / 6))), "]": () => setSize(stage.size + Math.max(1, Math.round(stage.size / 6))),
  m: () => setView($("view").value === "mask" ? "image" : "mask"),
  h: () => { const heats = item ? item.soft.map((id) => `heat ${id}`) : []; setView([...heats, "mask"][heats.indexOf($("view").value) + 1]); },
  o: () => $("outline").click(), k: () => { if (!$("t-crf").disabled) $("t-crf").click(); },
  "+": () => stage.zoomBy(1.25), "=": () => stage.zoomBy(1.25), "-": () => stage.zoomBy(0.8), 0: () => stage.fit(),
  Enter: () => { if (!(stage.tool === "polygon" && stage.corners.length && (stage.closePolygon() || true))) saveCorrected(); },
  Escape: () => stage.dropPolygon(), "?": () => $("help").showModal(),
};

function onKey(event) {
  const key = pageKey(event);
  if (key === null) return;
  const tool = nextTool(event);
  if (tool) {
    event.preventDefault();
    setTool(tool.dataset.tool);
    tool.focus();
    return;
  }
  if (event.target === stage.box && stage.key(event)) {
    event.preventDefault();
    return;
  }
  const work = /^[1-9]$/.test(key) ? () => toggleWrong(Number(key) - 1) : KEYS[key];
  if (!work || (event.repeat && !key.startsWith("Arrow"))) return;
  event.preventDefault();
  work();
}

async function ask() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  if (await queue.ask(filters())) await open(Math.max(0, queue.ids.indexOf(wanted)));
  else tell("No image fits these filters.");
}

function listen() {
  document.addEventListener("keydown", onKey);
  for (const [id, work] of Object.entries({
    accept: KEYS.a, reject: KEYS.r, skip: KEYS.s, undo, previous: KEYS.ArrowLeft, next: KEYS.ArrowRight, save: saveCorrected, drop: toMachine,
    "zoom-in": KEYS["+"], "zoom-out": KEYS["-"], "zoom-fit": KEYS[0], "help-open": KEYS["?"],
  })) $(id).addEventListener("click", work);
  for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => setTool(button.dataset.tool));
  listenToFilters(ask);
  $("draw").addEventListener("change", () => setDraw($("draw").value));
  $("size").addEventListener("input", () => setSize(Number($("size").value)));
  $("view").addEventListener("change", () => setView($("view").value));
  $("opacity").addEventListener("input", () => { stage.alpha = Number($("opacity").value) / 100; stage.paint(); });
  $("outline").addEventListener("change", () => { stage.outline = $("outline").checked; stage.paint(); });
  listenToTuning(() => showTuning(store, item), retune, () => { showTuning(store, item, store.settings); retune(); });
  $("who").addEventListener("change", () => localStorage.setItem("who", who()));
  window.addEventListener("beforeunload", (event) => { if (item && stage.drawn) event.preventDefault(); });
}

async function start() {
  $("who").value = localStorage.getItem("who") || app.dataset.who;
  store = await tried(() => readJson("/api/store"));
  if (!store) return;
  stage.colours = store.classes.map((one) => one.rgb);
  offerFilters(store);
  listen();
  setTool("look");
  showTuning(store, item, store.settings);
  if (app.dataset.model) (await import("./ground.js")).start();
  await ask();
}

tried(start);
