// The theme that was chosen here, before anything is painted; without a choice that of the system.
"use strict";

try {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // No storage, no choice.
}
