"use strict";
window.addEventListener("error", (event) => { document.documentElement.dataset.error = event.message; });
const data = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("request");
const button = document.getElementById("play");
let timer = null;

function show(number) {
  const at = Math.min(Math.max(number, 0), data.length - 1), request = data[at];
  slider.value = at;
  document.getElementById("instruction").textContent = request.instruction;
  document.getElementById("when").textContent =
    `request ${at + 1} of ${data.length}, ${request.at_s.toFixed(2)} s, policy ${(request.policy_s * 1e3).toFixed(1)} ms`;
  for (const image of document.querySelectorAll("img[data-role]")) image.src = request.frames[image.dataset.role];
  for (const line of document.querySelectorAll(".cursor")) { line.setAttribute("x1", request.x); line.setAttribute("x2", request.x); }
  for (const line of document.querySelectorAll(".chunk")) line.classList.toggle("here", Number(line.dataset.request) === at);
  document.documentElement.dataset.shown = at;
}

function play() {
  if (timer !== null) { clearTimeout(timer); timer = null; button.textContent = "Play"; return; }
  button.textContent = "Pause";
  const next = () => {
    const at = Number(slider.value);
    if (at + 1 >= data.length) { play(); return; }
    show(at + 1);
    timer = setTimeout(next, Math.min(Math.max((data[Math.min(at + 2, data.length - 1)].at_s - data[at + 1].at_s) * 1e3, 30), 1000));
  };
  timer = setTimeout(next, 0);
}

const wanted = () => Number((location.hash.match(/request=(\d+)/) || [0, 1])[1]) - 1;
slider.addEventListener("input", () => show(Number(slider.value)));
button.addEventListener("click", play);
window.addEventListener("hashchange", () => show(wanted()));
document.addEventListener("keydown", (event) => {
  if (event.target === slider) return;
  if (event.key === "ArrowRight") show(Number(slider.value) + 1);
  if (event.key === "ArrowLeft") show(Number(slider.value) - 1);
});
show(wanted());
document.documentElement.dataset.ready = "yes";
