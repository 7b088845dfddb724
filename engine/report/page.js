// Draws the charts that the page has as JSON, and moves those with a slider through the epochs.
"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const touch = matchMedia("(pointer: coarse)").matches;
const config = {
  responsive: true,
  displaylogo: false,
  displayModeBar: touch ? false : "hover",
  modeBarButtons: [["toImage"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]],  // none that sends
};
const size = innerWidth < 640 ? 11 : 13;  // of the font, in pixels
const paper = { width: 680, autosize: false, "font.size": 10 };  // an A4 page between its margins
const whole = { width: null, height: null, autosize: true, "font.size": size };

function common(layout) {
  const narrow = innerWidth < 640;
  const axis = { automargin: true, gridcolor: "#eee", linecolor: "#999", showline: true };
  return {
    font: { family: "system-ui, sans-serif", size, color: "#222" },
    margin: { l: narrow ? 40 : 60, r: 10, t: 10, b: 40 },
    hovermode: "closest",
    dragmode: touch ? false : "zoom",  // a finger scrolls the page
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
}

function move(place, chart, slider) {
  const epoch = Number(slider.value);
  const output = document.querySelector(`output[for="${slider.id}"]`);
  output.value = epoch ? `epoch ${epoch}` : output.dataset.best;
  const y = chart.frames.map((of, i) => (epoch ? of[epoch - 1] || [] : chart.best[i]));
  Plotly.restyle(place, { y });
}

function draw(number) {
  const chart = charts[number];
  const place = document.getElementById(`chart-${number}`);
  Plotly.newPlot(place, chart.data, common(chart.layout), config);
  if (chart.frames) {
    chart.best = chart.data.map((trace) => trace.y);
    const slider = document.getElementById(`slider-${number}`);
    slider.addEventListener("input", () => move(place, chart, slider));
  }
}

// The first at once, each other when the page has answered what came meanwhile.
const left = [...charts.keys()];
function next() {
  if (left.length) draw(left.shift());
  if (left.length) setTimeout(next);
}
next();

const places = document.getElementsByClassName("chart");
addEventListener("beforeprint", () => {
  while (left.length) draw(left.shift());
  for (const part of document.querySelectorAll("details")) part.open = true;
  for (const place of places) {
    Plotly.relayout(place, { ...paper, height: 0.75 * place._fullLayout.height });
  }
});
addEventListener("afterprint", () => {
  for (const place of places) Plotly.relayout(place, whole);
});
