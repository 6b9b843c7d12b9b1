"use strict";
/* Puts the cursor on the line that is wrong. */

const editor = document.getElementById("text");
for (const button of document.querySelectorAll("[data-line]")) {
  button.addEventListener("click", () => {
    const lines = editor.value.split("\n");
    const number = Math.min(Number(button.dataset.line), lines.length);
    const start = lines.slice(0, number - 1).join("\n").length + (number > 1 ? 1 : 0);
    editor.focus();
    editor.setSelectionRange(start, start + lines[number - 1].length);
  });
}
