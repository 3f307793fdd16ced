// Live parts stand still while nobody looks at them, while somebody types or selects in them, and
// while somebody is about to decide about something (data-hold): it must not move away underneath.
"use strict";

document.addEventListener("htmx:before:request", (event) => {
  const live = event.target.closest?.("[data-live]");
  if (!live) return;
  const busy = live.contains(document.activeElement) &&
    document.activeElement.matches("input:not([type=hidden]), textarea, select");
  const selecting = document.getSelection().toString() !== "" &&
    live.contains(document.getSelection().anchorNode);
  const deciding = live.querySelector("[data-hold]:is(:hover, :focus-within)") !== null;
  if (document.hidden || busy || selecting || deciding) event.preventDefault();
});

// The choice of a theme works by this script alone, so it is shown by it too.
const themes = document.getElementById("theme");
themes.value = document.documentElement.dataset.theme ?? "";
themes.parentElement.hidden = false;
themes.addEventListener("change", () => {
  if (themes.value) document.documentElement.dataset.theme = themes.value;
  else delete document.documentElement.dataset.theme;
  try {
    localStorage.setItem("theme", themes.value);
  } catch {
    // It holds for this page.
  }
});
