"use strict";
// Vega draws with text and axes in `currentColor`, so that light, dark and print need no second drawing.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = (columns) => {
    const names = Object.keys(columns);
    return (columns[names[0]] || []).map((_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
  };
  const tables = Object.fromEntries(Object.entries(data.tables).map(([name, columns]) => [name, rows(columns)]));
  // What a mark holds, beside the pointer, or beside the mark that the arrow keys have reached.
  const tip = document.getElementById("tip");
  const show = (value, x, y) => {
    tip.hidden = !value;
    if (!value) return;
    tip.replaceChildren(...Object.entries(value).map(([name, text]) => {
      const line = document.createElement("div");
      const label = document.createElement("span");
      label.textContent = name;
      line.append(label, " ", text);
      return line;
    }));
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - tip.offsetHeight - 4))}px`;
  };
  const tooltip = (_, event, __, value) => show(value, event.clientX, event.clientY);
  const step = (place) => {
    let at = -1;
    place.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") show(null);
      if (!by) return;
      event.preventDefault();
      const marks = [...place.querySelectorAll("path")].filter((mark) => mark.__data__?.tooltip);
      if (!marks.length) return;
      at = at < 0 && by < 0 ? marks.length - 1 : (at + by + marks.length) % marks.length;
      const box = marks[at].getBoundingClientRect();
      show(marks[at].__data__.tooltip, box.x + box.width / 2, box.y + box.height / 2);
    });
    place.addEventListener("blur", () => show(null));
  };

  // One after another, so that the page answers while the lower ones are drawn.
  const draw = async () => {
    for (const place of document.querySelectorAll(".chart")) {
      const chart = data.charts[place.id];
      const datasets = Object.fromEntries(Object.entries(chart.data).map(([own, shared]) => [own, tables[shared].map((row) => ({ ...row }))]));
      await vegaEmbed(place, { ...chart.spec, config: data.config, datasets }, { renderer: "svg", actions: false, defaultStyle: false, tooltip });
      place.querySelector("svg").setAttribute("aria-hidden", "true"); // what it shows is said by the label around it
      step(place);
      await new Promise((done) => setTimeout(done));
    }
    document.body.dataset.drawn = "true";
  };
  draw();

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const headings = [...table.tHead.rows[0].cells];
    const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === ""); // what has no value stays at the end
      return isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    };
    headings.forEach((heading, column) => {
      heading.querySelector("button")?.addEventListener("click", () => {
        const falling = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const sorted = [...body.rows].sort((a, b) => {
          const [x, y] = [value(a, column), value(b, column)];
          return x === "" || y === "" || !falling ? compare(x, y) : compare(y, x);
        });
        body.append(...sorted);
      });
    });
  }

  const text = document.getElementById("filter");
  const state = document.getElementById("state");
  const shown = document.getElementById("shown");
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const all = [...document.querySelectorAll("#trials tbody tr")];
    for (const row of all) {
      const fits = words.every((word) => row.textContent.toLowerCase().includes(word));
      row.hidden = !fits || (state.value !== "" && row.dataset.state !== state.value);
    }
    shown.textContent = `${all.filter((row) => !row.hidden).length} of ${all.length} trials`;
  };
  text?.addEventListener("input", filter);
  state?.addEventListener("change", filter);

  const pause = document.getElementById("pause");
  if (pause) {
    const again = () => setTimeout(() => location.reload(), 1000 * Number(pause.dataset.seconds));
    let timer = again();
    pause.addEventListener("click", () => {
      const running = pause.getAttribute("aria-pressed") === "false";
      pause.setAttribute("aria-pressed", String(running));
      if (running) clearTimeout(timer);
      else timer = again();
    });
  }
})();
