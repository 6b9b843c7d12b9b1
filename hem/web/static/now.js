"use strict";
/* Keeps the first page up to date. Without it the page shows the moment at which it was opened. */

const EVERY_MS = 5000;

function show(now) {
  for (const place of document.querySelectorAll("[data-now]")) {
    const text = String(now[place.dataset.now]);
    if (place.textContent !== text) place.textContent = text;
  }
  for (const place of document.querySelectorAll("[data-now-value]")) {
    place.value = now[place.dataset.nowValue];
  }
  for (const wire of document.querySelectorAll("[data-flow]")) {
    wire.dataset.state = now.flows[wire.dataset.flow];
  }
  document.getElementById("health").dataset.state = now.health;
  const reasons = document.getElementById("reasons");
  reasons.hidden = now.reasons.length === 0;
  reasons.replaceChildren(...now.reasons.map((text) => {
    const line = document.createElement("li");
    line.textContent = text;
    return line;
  }));
}

async function update() {
  const offline = document.getElementById("offline");
  try {
    const answer = await fetch("/api/now", { cache: "no-store" });
    if (answer.status === 401) {
      location.assign("/login");
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    show(await answer.json());
    offline.hidden = true;
    document.body.dataset.ready = "yes";
  } catch {
    offline.hidden = false;
  }
}

async function keepOn() {
  if (!document.hidden) await update();
  setTimeout(keepOn, EVERY_MS);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) update(); });
keepOn();
