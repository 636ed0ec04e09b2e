// Sorts tables by their headings, and shows titles as tooltips that the keyboard reaches too.
"use strict";

const collator = new Intl.Collator("en", { numeric: true });

function compareCells(a, b, direction) {
  // Missing values stay at the end in both directions.
  if (a === "" || b === "") return (a === "") - (b === "");
  const numbers = [Number(a), Number(b)];
  const order = numbers.some(Number.isNaN) ? collator.compare(a, b) : numbers[0] - numbers[1];
  return direction * order;
}

function sortTable(table, index, heading) {
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const key = (row) => row.cells[index].dataset.sort;
  const rows = [...body.rows].sort((a, b) => compareCells(key(a), key(b), descending ? -1 : 1));
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, index) => {
    heading.querySelector("button").addEventListener("click", () => sortTable(table, index, heading));
  });
}

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

for (const owner of document.querySelectorAll("[title]")) {
  owner.dataset.tip = owner.title;
  owner.setAttribute("aria-description", owner.title);
  owner.removeAttribute("title");
}

function ownerOf(event) {
  return event.target instanceof Element ? event.target.closest("[data-tip]") : null;
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
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});
