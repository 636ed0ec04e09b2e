// Tooltips, keys and the help dialog. Works without a server too.
"use strict";

const tip = document.getElementById("tip");
let tipOwner = null;

function showTip(owner) {
  tipOwner = owner;
  tip.textContent = owner.dataset.tip;
  tip.hidden = false;
  const box = owner.getBoundingClientRect();
  const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6;
  const fits = below + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${fits ? below : box.top - tip.offsetHeight - 6}px`;
}

function hideTip() {
  tip.hidden = true;
  tipOwner = null;
}

function ownerOf(event) {
  const owner = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
  return owner && owner.dataset.tip ? owner : null;
}

document.addEventListener("mouseover", (event) => {
  const owner = ownerOf(event);
  if (owner && owner !== tipOwner) showTip(owner);
  else if (!owner && tipOwner) hideTip();
});
document.addEventListener("focusin", (event) => {
  const owner = ownerOf(event);
  if (owner && owner.matches(":focus-visible")) showTip(owner);
});
document.addEventListener("focusout", hideTip);
document.addEventListener("scroll", hideTip, { capture: true, passive: true });

const help = document.getElementById("help");
document.getElementById("help-button").addEventListener("click", () => help.showModal());

function moveRow(step) {
  const rows = [...document.querySelectorAll("table[data-rows] .row-link")];
  if (!rows.length) return false;
  const at = rows.indexOf(document.activeElement);
  const next = at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step));
  rows[next].focus();
  return true;
}

function follow(key) {
  const link = document.querySelector(`[data-key="${key}"]`);
  if (link) link.click();
  return Boolean(link);
}

const KEYS = {
  j: () => moveRow(1) || follow("next"),
  k: () => moveRow(-1) || follow("previous"),
  ArrowRight: () => follow("next"),
  ArrowLeft: () => follow("previous"),
  u: () => follow("up"),
  "/": () => {
    const field = document.getElementById("text") || document.getElementById("quick-search");
    if (field) field.focus();
    return Boolean(field);
  },
  "?": () => {
    help.showModal();
    return true;
  },
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (event.target instanceof Element && event.target.closest("input, textarea, select, [contenteditable]")) return;
  const act = Object.hasOwn(KEYS, event.key) ? KEYS[event.key] : null;
  if (act && act()) event.preventDefault();
});

// A document opens below its example, and closes by the same link.
document.addEventListener("htmx:beforeRequest", (event) => {
  const link = event.target;
  if (!(link instanceof Element) || !link.matches("a.doc")) return;
  const place = link.parentElement.querySelector(".whole");
  if (place.firstElementChild) {
    place.replaceChildren();
    event.preventDefault();
  }
});
document.addEventListener("htmx:afterSwap", (event) => {
  const here = event.target instanceof Element ? event.target.querySelector(".document .here") : null;
  if (here) here.scrollIntoView({ block: "nearest" });
});

// Points of a plane were drawn anew: the keyboard stays among them, and the context comes into view.
document.addEventListener("htmx:afterSwap", (event) => {
  if (!(event.target instanceof Element) || event.target.id !== "points") return;
  const current = event.target.querySelector("a[aria-current]");
  if (document.activeElement === document.body) current.focus({ preventScroll: true });
  event.target.querySelector(".context").scrollIntoView({ block: "nearest" });
});
