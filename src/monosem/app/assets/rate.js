"use strict";
/* Rating, one item after the other. A rating is kept in this browser until the server says that it is on disk. One that
   it refuses stays, too: its item comes again, with what was entered, when the others are rated. */

const AXES = ["consistency", "complexity"];
const $ = (id) => document.getElementById(id);
let rater = "", session = null, index = 0, item = null, answer = null, asking = false, busy = false, opened = "";
const fetched = new Map(), unstored = new Map();  // by place; by item id

const now = () => new Date().toISOString();
const token = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
const pause = (ms) => new Promise((done) => { const timer = setTimeout(done, ms); addEventListener("online", () => { clearTimeout(timer); done(); }, { once: true }); });
const keep = (store, key, value) => { try { value === null ? store.removeItem(key) : store.setItem(key, value); } catch { /* no storage: the rating stays on the page */ } };
const kept = (store, key) => { try { return store.getItem(key); } catch { return null; } };
const pendingKey = () => `ratings-to-send:${session.study}:${rater}`;
function keepUnstored() { keep(localStorage, pendingKey(), unstored.size ? JSON.stringify([...unstored.values()]) : null); }

function notice(text) { $("notice").hidden = !text; $("notice").textContent = text || ""; }
function hint(text) { $("hint").textContent = text || ""; }
function show(name) { for (const id of ["start", "item", "end"]) $(id).hidden = id !== name; }

class Refused extends Error {
  constructor(status, reason) { super(reason); this.status = status; }
}

/* Ask the server until it answers. What it refuses for good is thrown; a failure of network or disk is tried again. */
async function ask(path, options, waiting) {
  let waited = false;
  for (let wait = 500; ; wait = Math.min(5000, wait * 2)) {
    let answered = null;
    try {
      answered = await fetch(path, { cache: "no-store", ...options });
      if (answered.ok) { const value = await answered.json(); if (waited) notice(""); return value; }
    } catch { answered = null; }
    if (answered && answered.status < 500) {
      const said = await answered.json().catch(() => ({}));
      throw new Refused(answered.status, said.reason || `The server refused this (${answered.status}).`);
    }
    waited = true;
    notice(waiting);
    await pause(wait);
  }
}
const post = (path, value, waiting) =>
  ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value) }, waiting);

async function begin(name) {
  try {
    session = await ask(`session?rater=${encodeURIComponent(name)}`, {}, "The server can't be reached. Trying again …");
  } catch (error) { notice(error.message); show("start"); return; }
  rater = name.normalize("NFC").split(/\s+/).filter(Boolean).join(" ");
  keep(sessionStorage, "rater", rater);
  keep(localStorage, "last-rater", rater);
  $("who").textContent = rater;
  $("who").hidden = $("leave").hidden = $("place").hidden = false;
  for (const record of JSON.parse(kept(localStorage, pendingKey()) || "[]")) unstored.set(record.item_id, record);
  busy = true;
  for (const record of [...unstored.values()]) await deliver(record);  // of before a reload
  busy = false;
  if (session.frozen) { notice("The ratings are frozen: nothing more is stored."); show("none"); return; }
  await next();
}

function firstOpen() {
  const open = (one) => !(one.id in session.answers) || unstored.has(one.id);
  const fresh = session.order.findIndex((one) => open(one) && !unstored.has(one.id));
  const at = fresh < 0 ? session.order.findIndex(open) : fresh;
  return at < 0 ? session.order.length : at;
}
async function next() { await open(firstOpen()); }

function fetchItem(at) {
  if (!fetched.has(at)) fetched.set(at, ask(`item/${at}`, {}, "The server can't be reached. Trying again …"));
  fetched.get(at).catch(() => fetched.delete(at));
  return fetched.get(at);
}

async function open(at) {
  index = at;
  progress();
  if (at >= session.order.length) { show("end"); item = null; document.body.dataset.item = "end"; return; }
  try { item = await fetchItem(at); } catch (error) { notice(error.message); return; }
  answer = { consistency: null, complexity: null, cannot_tell: false, note: "", guess: null, ...session.answers[item.id], ...entered(unstored.get(item.id)) };
  asking = false;
  draw();
  show("item");
  scrollTo(0, 0);
  opened = now();
  document.activeElement?.blur();
  document.body.dataset.item = item.id;
  if (at + 1 < session.order.length) fetchItem(at + 1).catch(() => {});
}

function progress() {
  const practice = session.order.filter((one) => one.training).length, all = session.order.length - practice;
  const done = session.order.filter((one) => !one.training && one.id in session.answers).length;
  $("progress").max = all;
  $("progress").value = done;
  const at = Math.min(index, session.order.length - 1);
  $("count").textContent = index >= session.order.length ? `${all} of ${all}` : at < practice ? `Practice ${at + 1} of ${practice}` : `Item ${at - practice + 1} of ${all}`;
  $("kind").hidden = at >= practice;
}

const visible = (text) => text.replace(/\r/g, "␍").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
function line(window_) {
  const made = element("li");
  made.append(...window_.tokens.map((text, i) => {
    const looks = [i === window_.at ? "middle" : "", window_.shades[i] ? `s${window_.shades[i]}` : ""];
    return element("span", looks.join(" ").trim(), visible(i ? text : text.replace(/^ /, "")));
  }));
  return made;
}
function draw() {
  $("examples").replaceChildren(...item.groups.map((group) => {
    const made = element("section", "group"), list = element("ol");
    list.append(...group.windows.map(line));
    made.append(element("h2", "", group.name), list);
    return made;
  }));
  $("note").value = answer.note;
  $("families").replaceChildren(...session.families.map((family, i) => {
    const label = element("label"), radio = element("input");
    radio.type = "radio"; radio.name = "family"; radio.value = family;
    radio.addEventListener("change", () => { answer.guess = family; mark(); });
    label.append(radio, element("b", "", String(i + 1)), element("span", "", family));
    return label;
  }));
  hint("");
  mark();
}

const scored = () => AXES.every((axis) => answer[axis] !== null);
const activeAxis = () => (answer.cannot_tell || asking ? null : AXES.find((axis) => answer[axis] === null) || null);
function mark() {
  for (const axis of AXES) {
    for (const radio of document.getElementsByName(axis)) radio.checked = answer[axis] === Number(radio.value);
    $(axis).classList.toggle("active", activeAxis() === axis);
  }
  for (const radio of document.getElementsByName("family")) radio.checked = answer.guess === radio.value;
  $("cannot-tell").checked = answer.cannot_tell;
  $("guess").hidden = !asking;
  $("guess").classList.toggle("active", asking);
  for (const control of $("scales").elements) control.disabled = busy;
  $("back").disabled = busy || index === 0;
}
function score(axis, value) {
  answer[axis] = value;
  answer.cannot_tell = false;
  hint("");
  mark();
}
function setCannotTell(on) {
  answer.cannot_tell = on;
  if (on) for (const axis of AXES) answer[axis] = null;
  hint("");
  mark();
}

async function submit() {
  if (busy || !item) return;
  answer.note = $("note").value;
  if (!answer.cannot_tell && !scored()) return hint("Both scales need a score first, or “cannot tell”.");
  if (item.guess && !asking) { asking = true; mark(); $("hint").scrollIntoView({ block: "nearest" }); return hint("Guess with a number, then submit."); }
  if (item.guess && !answer.guess) return hint("This item needs a guess.");
  const record = { ...answer, submission: token(), study_id: session.study, item_id: item.id, rater_id: rater, t_open: opened, t_submit: now(), ui_version: Number(document.body.dataset.version), view_hash: item.view };
  notice("");
  busy = true;
  mark();
  const stored = await deliver(record);
  busy = false;
  if (stored) await next(); else mark();
}
const entered = (record) => record && { consistency: record.consistency, complexity: record.complexity, cannot_tell: record.cannot_tell, note: record.note, guess: record.guess };

/* Send a rating until it is on disk or refused. Returns whether the rater may go on: not if nothing would be stored. */
async function deliver(record) {
  unstored.set(record.item_id, record);
  keepUnstored();
  try {
    await post("submit", record, "Not stored yet: the server can't be reached. Your rating is kept in this browser. Trying again …");
  } catch (error) {
    const again = error.status === 400;  // this rating is refused; otherwise the study is frozen, drawn anew, gone
    notice(`Not stored: ${error.message} ${again ? "The rating is kept here, and its item comes again." : "The rating is kept here."}`);
    return again;
  }
  unstored.delete(record.item_id);
  keepUnstored();
  session.answers[record.item_id] = entered(record);
  return true;
}
async function back() {
  if (busy || asking) { if (!busy) { asking = false; hint(""); mark(); } return; }
  if (!session || index === 0) return;
  const from = session.order[Math.min(index, session.order.length - 1)].id;
  busy = true;
  try {
    await post("back", { submission: token(), study_id: session.study, item_id: from, rater_id: rater, t_submit: now(), ui_version: Number(document.body.dataset.version) }, "The server can't be reached. Trying again …");
  } catch (error) { busy = false; notice(error.message); return; }
  busy = false;
  await open(index - 1);
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const field = event.target.closest?.("textarea, input:not([type])");
  if (field) { if (event.key === "Escape") field.blur(); return; }
  if (event.key === "?") { $("help").showModal(); return; }
  if (!session || $("start").hidden === false) return;
  if (event.key === "b") { event.preventDefault(); back(); return; }
  if ($("item").hidden || busy) return;
  if (event.key === "Enter") { if (event.target.closest?.("button")) return; event.preventDefault(); submit(); return; }
  if (event.key === "n") { event.preventDefault(); $("note").focus(); return; }
  if (event.key === "c") { setCannotTell(!answer.cannot_tell); return; }
  if (event.key === "Backspace") {
    event.preventDefault();
    if (asking) { answer.guess = null; mark(); return; }
    const last = [...AXES].reverse().find((axis) => answer[axis] !== null);
    if (last) score(last, null);
    return;
  }
  const digit = /^[1-9]$/.test(event.key) ? Number(event.key) : 0;
  if (!digit) return;
  if (asking) { if (digit <= session.families.length) { answer.guess = session.families[digit - 1]; mark(); } return; }
  const axis = activeAxis() || (answer.cannot_tell ? AXES[0] : null);
  if (digit <= 5 && axis) score(axis, digit);
  else if (digit <= 5) hint("Both are scored: Enter submits, Backspace takes back.");
}

addEventListener("keydown", pressed);
for (const axis of AXES) for (const radio of document.getElementsByName(axis)) radio.addEventListener("change", () => score(axis, Number(radio.value)));
$("cannot-tell").addEventListener("change", (event) => setCannotTell(event.target.checked));
$("scales").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("name-form").addEventListener("submit", (event) => { event.preventDefault(); begin($("name").value); });
$("help-button").addEventListener("click", () => $("help").showModal());
$("back").addEventListener("click", back);
$("end-back").addEventListener("click", back);
$("leave").addEventListener("click", () => { keep(sessionStorage, "rater", null); location.reload(); });
const known = kept(sessionStorage, "rater");
if (known) begin(known);
else { $("name").value = kept(localStorage, "last-rater") || ""; show("start"); $("name").focus(); }
