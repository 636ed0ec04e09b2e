// Sorts tables by their headings, filters long ones, and shows titles as tooltips that the keyboard reaches too.
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

const FILTERED_FROM = 25; // rows: as many as no longer stand on the page at once
const MENU_UP_TO = 24; // different texts of a column that a menu can offer

function labelled(words, control) {
  const label = document.createElement("label");
  label.append(words, control);
  return label;
}

function menuOf(rows, index) {
  const texts = [...new Set(rows.map((row) => row.cells[index].dataset.sort))].filter((text) => text !== "");
  if (texts.length < 2 || texts.length > MENU_UP_TO) return null;
  const menu = document.createElement("select");
  menu.append(new Option("all", ""), ...texts.sort(collator.compare).map((text) => new Option(text)));
  menu.dataset.column = index;
  return menu;
}

// Words that a row must hold, all of them, and a menu for each column of few different texts.
function addFilters(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < FILTERED_FROM) return;
  const search = document.createElement("input");
  search.type = "search";
  const counted = document.createElement("span");
  counted.setAttribute("role", "status");
  const bar = document.createElement("div");
  bar.className = "filters";
  bar.append(labelled("Rows with", search));
  const menus = [];
  [...table.tHead.rows[0].cells].forEach((heading, index) => {
    const menu = heading.classList.contains("text") ? menuOf(rows, index) : null;
    if (menu) menus.push(menu) && bar.append(labelled(heading.querySelector(".label").textContent, menu));
  });
  bar.append(counted);
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = menus.filter((menu) => menu.value !== "");
    let shown = 0;
    for (const row of rows) {
      const fits = chosen.every((menu) => row.cells[menu.dataset.column].dataset.sort === menu.value);
      const text = fits && words.length ? row.textContent.toLowerCase() : "";
      row.hidden = !fits || !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    const all = rows.length.toLocaleString("en");
    counted.textContent = shown === rows.length ? `${all} rows` : `${shown.toLocaleString("en")} of ${all} rows`;
  };
  for (const control of [search, ...menus]) control.addEventListener("input", apply);
  apply();
  table.parentElement.before(bar);
}

document.querySelectorAll("table.sortable").forEach(addFilters);

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
