// Keeps a page up to date: fetches it again every two seconds, or every ten once
// nobody has touched it for a while, and never while it is hidden. The parts
// marked data-live take the place of the old ones. What people are doing is left
// alone: the filter is outside of those parts, unfolded rows stay unfolded, the
// focus stays, and nothing is replaced under a pressed finger or a selection.
"use strict";

const interval = 2000, slowInterval = 10000; // ms
const untouched = 600000; // ms until it is slow
const fresh = document.getElementById("fresh");
const filter = document.getElementById("filter");
let pressed = false;
let paused = false;     // the last answer was not shown, so as not to disturb
let timer;
let shown = Date.now(); // when what is shown was fetched
let touched = shown;    // when somebody last did something here
let asked = 0;          // requests so far: an answer that was overtaken is dropped

document.getElementById("reload").hidden = true;
filter?.querySelector("button").setAttribute("hidden", "");
history.replaceState(null, "", withoutDone());

addEventListener("pointerdown", () => { pressed = true; });
for (const sign of ["pointermove", "pointerdown", "keydown", "scroll"]) {
  addEventListener(sign, touch, { passive: true });
}
for (const end of ["pointerup", "pointercancel", "blur"]) {
  addEventListener(end, () => { pressed = false; });
}
document.addEventListener("visibilitychange", () => { touch(); document.hidden ? clearTimeout(timer) : refresh(); });
filter?.addEventListener("input", applyFilter);
filter?.addEventListener("submit", (e) => { e.preventDefault(); applyFilter(); });
setInterval(tellAge, 1000);
tellAge();
timer = setTimeout(refresh, interval);

function touch() { touched = Date.now(); }

function pause() { return Date.now() - touched > untouched ? slowInterval : interval; }

// The address tells what came of an act once, not after each reload.
function withoutDone() {
  const url = new URL(location.href);
  url.searchParams.delete("done");
  return url;
}

function applyFilter() {
  const url = new URL(location.origin + "/");
  for (const [name, value] of new FormData(filter)) {
    if (value) url.searchParams.set(name, value);
  }
  history.replaceState(null, "", url);
  refresh();
}

async function refresh() {
  clearTimeout(timer);
  const number = ++asked;
  try {
    const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(10000) });
    if (!answer.ok) throw new Error(answer.status);
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (number === asked) {
      paused = busy();
      if (!paused) {
        swap(next);
        shown = Date.now();
      }
    }
  } catch {
    paused = false; // the age of what is shown tells it
  }
  tellAge();
  if (number === asked && !document.hidden) timer = setTimeout(refresh, pause());
}

function busy() {
  const selection = getSelection();
  const inside = selection.rangeCount > 0 && !selection.isCollapsed &&
    [...document.querySelectorAll("[data-live]")].some((part) => selection.containsNode(part, true));
  return pressed || inside;
}

function swap(next) {
  const focused = document.activeElement?.id;
  const [x, y] = [scrollX, scrollY];
  for (const old of document.querySelectorAll("[data-live]")) {
    const part = next.getElementById(old.id);
    if (!part || part.isEqualNode(old)) continue;
    for (const details of old.querySelectorAll("details[open]")) {
      const same = part.querySelector("#" + CSS.escape(details.id));
      if (same) same.open = true;
    }
    old.replaceWith(document.adoptNode(part));
  }
  if (focused && document.activeElement?.id !== focused) {
    document.getElementById(focused)?.focus({ preventScroll: true });
  }
  scrollTo(x, y);
}

// Says how old the page is, loudly when it should not be that old.
function tellAge() {
  const seconds = Math.round((Date.now() - shown) / 1000);
  const stale = seconds > 6 + pause() / 1000 && !paused;
  fresh.textContent = paused ? "Paused while text is selected." :
    stale ? "Not up to date: no answer from pgproxy for " + seconds + " s." : "Live.";
  fresh.parentElement.classList.toggle("stale", stale);
}
