"use strict";
// All but the plot answers now. Plotly, which is most of this file, is read when there is time for it, or when it is
// needed: a browser takes about half a second for it.

performance.mark("interactive");
document.documentElement.dataset.ready = "true";

function plotNow() {
  if (window.Plotly) return;
  document.head.append(make("script", { text: $("#plotly").textContent }));
  leakagePlot.draw();
  performance.mark("drawn");
  document.documentElement.dataset.drawn = "true";
}

new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && plotNow(), { rootMargin: "300px" }).observe($("#plot"));
(window.requestIdleCallback ?? setTimeout)(() => setTimeout(plotNow), { timeout: 300 });
