// Draws the page's charts when they come near the screen, in the colours of the current theme, and
// saves them: as pictures in light colours, and as data.
(() => {
  const { themes, common, axis: axisBase } = JSON.parse(
    document.getElementById("look").textContent);
  const PHONE = 700; // pixels: below, parts start closed
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Set();

  const current = () => (prefersDark.matches ? themes.dark : themes.light);

  function paint(value, theme) {
    if (Array.isArray(value)) return value.map((part) => paint(part, theme));
    if (value && typeof value === "object") {
      const parts = Object.entries(value).map(([key, part]) => [key, paint(part, theme)]);
      return Object.fromEntries(parts);
    }
    if (typeof value !== "string" || value[0] !== "$") return value;
    const colour = /^\$c(\d)(-soft)?$/.exec(value);
    if (colour) return theme.c[colour[1]] + (colour[2] ? "33" : "");
    return theme[value.slice(1)] ?? value;
  }

  function axis(own) {
    return { ...axisBase, ...own, title: { ...axisBase.title, ...own?.title } };
  }

  // Rounds are whole: where there are few, no tick stands between two of them.
  function rounds(own, traces) {
    const places = traces.flatMap((trace) => trace.x ?? []);
    const few = Math.max(...places) - Math.min(...places) < 6;
    return /^round/.test(own?.title?.text) && few ? { ...own, dtick: 1 } : own;
  }

  // What Plotly is given: traces and layout, painted.
  function compose({ traces, height, layout }, theme) {
    const page = {
      height,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "$ink" },
      showlegend: traces.filter((trace) => trace.showlegend !== false).length > 1,
    };
    const axes = { xaxis: axis(rounds(layout.xaxis, traces)), yaxis: axis(layout.yaxis) };
    const whole = { ...common, ...page, ...layout, ...axes };
    return { data: paint(traces, theme), layout: paint(whole, theme) };
  }

  function draw(element) {
    const { data, layout } = compose(charts[element.id], current());
    Plotly.react(element, data, layout, { displayModeBar: false, responsive: true });
    drawn.add(element);
  }

  // A picture stands alone: with its title, on white, in the size it has here.
  async function picture(element, format) {
    begin();
    const { data, layout } = compose(charts[element.id], themes.light);
    const width = Math.max(element.clientWidth, 480), height = layout.height + 44;
    const alone = {
      ...layout, width, height, paper_bgcolor: "#ffffff",
      margin: { ...layout.margin, t: layout.margin.t + 44 },
      title: {
        text: charts[element.id].title.replace(/&/g, "&amp;").replace(/</g, "&lt;"),
        font: { size: 14 }, x: 0.02, xanchor: "left", y: 1, yref: "container", yanchor: "top",
        pad: { t: 14 },
      },
    };
    const scale = format === "png" ? 2 : 1;
    const url = await Plotly.toImage({ data, layout: alone }, { format, width, height, scale });
    return (await fetch(url)).blob();
  }

  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  const plain = (html) => {
    if (typeof html !== "string") return html;
    const text = html.replace(/<br>/g, " ");
    return new DOMParser().parseFromString(text, "text/html").body.textContent;
  };

  // A figure as a table: the same as `sheet_of` in simulations/figure_files.py makes.
  function sheet({ traces, layout }) {
    const named = (axis, other) => layout[axis]?.title?.text || other;
    const first = traces.find((trace) => trace.meta?.text || trace.z)?.meta ?? {};
    const headings = ["series", named("xaxis", "x"), named("yaxis", "y")];
    const hasZ = traces.some((trace) => trace.z), hasText = "text" in first;
    if (hasZ) headings.push(first.z);
    if (hasText) headings.push(first.text);
    const rows = [];
    for (const trace of traces) {
      const meta = trace.meta ?? {};
      if (meta.guide) continue;
      const name = plain(meta.series ?? trace.name ?? "");
      const add = (x, y, z, text) => {
        const row = [name, plain(x), plain(y)];
        if (hasZ) row.push(z);
        if (hasText) row.push(plain(text));
        rows.push(row);
      };
      if (!trace.z) {
        trace.x.forEach((x, i) => add(x, trace.y[i], undefined, trace.text?.[i]));
        continue;
      }
      const across = meta.x ?? trace.x, up = meta.y ?? trace.y;
      trace.z.forEach((line, j) => line.forEach((z, i) => {
        if (z !== null) add(across[i], up[j], z, trace.text?.[j][i]);
      }));
    }
    return [headings, ...rows];
  }

  function table(chart) {
    const lines = sheet(chart).map((row) => `${row.map(cell).join(",")}\n`);
    return new Blob([lines.join("")], { type: "text/csv" });
  }

  async function save(button) {
    const figure = button.closest("figure"), element = figure.querySelector(".chart");
    const form = button.dataset.save, chart = charts[element.id];
    const blob = form === "csv" ? table(chart) : await picture(element, form);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${chart.file}.${form}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    button.closest("details").open = false;
  }

  const elements = document.querySelectorAll(".chart");
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) { near.unobserve(target); draw(target); }
    }
  }, { rootMargin: "600px" });
  const parts = document.querySelectorAll("details.part");
  if (window.innerWidth < PHONE) {
    parts.forEach((part) => { part.open = "first" in part.dataset; });
  }
  // Plotly's script is large: the page is there to be read before it starts.
  function begin() {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
    elements.forEach((element) => near.observe(element));
  }
  requestAnimationFrame(() => setTimeout(begin));
  prefersDark.addEventListener("change", () => drawn.forEach(draw));
  window.addEventListener("beforeprint", () => {
    begin();
    parts.forEach((part) => { part.open = true; });
    elements.forEach(draw);
  });
  document.addEventListener("click", ({ target }) => {
    const menu = target.closest("details.save");
    document.querySelectorAll("details.save[open]").forEach((open) => {
      if (open !== menu) open.open = false;
    });
    if (target.dataset?.save) save(target);
  });
})();
