// Draws the page's charts when they come near the screen, in the colours of the current theme.
(() => {
  // Okabe & Ito's palette, which colour-blind readers can tell apart; lighter on dark.
  const THEMES = {
    light: {
      ink: "#1b1f24", muted: "#5b6570", faint: "#e3e6ea", card: "#ffffff",
      c: ["#0072b2", "#d55e00", "#008a62", "#b5548a", "#3a9bd6", "#b8860b", "#5b4a9e", "#4d4d4d"],
    },
    dark: {
      ink: "#e7eaee", muted: "#9aa5b1", faint: "#2d343c", card: "#1a2027",
      c: ["#56b4e9", "#ff9248", "#2fc79a", "#e59ac6", "#8fd0f5", "#f0c34e", "#b3a4f0", "#c4c4c4"],
    },
  };
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Set();

  const theme = () => (prefersDark.matches ? THEMES.dark : THEMES.light);

  function paint(value) {
    if (Array.isArray(value)) return value.map(paint);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, paint(part)]));
    }
    if (typeof value !== "string" || value[0] !== "$") return value;
    const colour = /^\$c(\d)(-soft)?$/.exec(value);
    if (colour) return theme().c[colour[1]] + (colour[2] ? "33" : "");
    return theme()[value.slice(1)] ?? value;
  }

  function axis(own) {
    return {
      gridcolor: "$faint", linecolor: "$faint", zeroline: false, automargin: true, nticks: 6,
      ...own, title: { font: { size: 12, color: "$muted" }, standoff: 8, ...own?.title },
    };
  }

  // Rounds are whole: where there are few, no tick stands between two of them.
  function rounds(own, traces) {
    const places = traces.flatMap((trace) => trace.x ?? []);
    const few = Math.max(...places) - Math.min(...places) < 6;
    return /^round/.test(own?.title?.text) && few ? { ...own, dtick: 1 } : own;
  }

  function draw(element) {
    const { traces, height } = charts[element.id];
    const layout = { ...charts[element.id].layout };
    layout.xaxis = rounds(layout.xaxis, traces);
    const common = {
      height, margin: { l: 44, r: 10, t: 28, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "$ink" },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      showlegend: traces.filter((trace) => trace.showlegend !== false).length > 1,
      hovermode: "x unified", hoverlabel: { bgcolor: "$card", bordercolor: "$faint" },
    };
    const whole = { ...common, ...layout, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis) };
    Plotly.react(element, paint(traces), paint(whole), { displayModeBar: false, responsive: true });
    drawn.add(element);
  }

  const elements = document.querySelectorAll(".chart");
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) { near.unobserve(target); draw(target); }
    }
  }, { rootMargin: "600px" });
  elements.forEach((element) => near.observe(element));
  prefersDark.addEventListener("change", () => drawn.forEach(draw));
  window.addEventListener("beforeprint", () => elements.forEach(draw));
})();
