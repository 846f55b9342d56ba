"use strict";

// Tables: a button in the head of each column sorts by it.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rows = [...table.tBodies[0].rows];
      // Numbers from the highest, names from A; then the other way round.
      const first = rows.some((row) => "value" in row.cells[column].dataset) ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        if (typeof x === "string") return sign * x.localeCompare(y, "en", { numeric: true });
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y);
      });
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      table.tBodies[0].append(...rows);
    });
  });
}

// What is folded on the screen is unfolded on paper.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));

// The map: all cells on a canvas, coloured by one layer at a time.
function drawMap(data) {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const shorts = (text) => new Uint16Array(bytes(text).buffer);
  const x = shorts(data.x), y = shorts(data.y), n = data.n;
  for (const layer of data.layers) {
    layer.values = (layer.names ? shorts : bytes)(layer.values);
  }
  const canvas = document.getElementById("cells");
  const tip = document.getElementById("tip");
  const key = document.getElementById("key");
  const radius = Math.max(0.8, Math.min(4, 120 / Math.sqrt(n)));
  const margin = 10;
  let current = data.layers[0], only = null;

  const colorOf = (layer, i) =>
    layer.names ? layer.colors[layer.values[i]] : layer.scale[layer.values[i] >> 4];
  const place = (width, height) => (i) => [
    margin + (x[i] / 65535) * (width - 2 * margin),
    height - margin - (y[i] / 65535) * (height - 2 * margin),
  ];

  function draw() {
    // At least twice the pixels, for paper.
    const ratio = Math.max(2, window.devicePixelRatio || 1);
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d"), at = place(width, height);
    pen.scale(ratio, ratio);
    const dot = (i) => {
      const [left, top] = at(i);
      pen.beginPath();
      pen.arc(left, top, radius, 0, 2 * Math.PI);
      pen.fill();
    };
    const chosen = (i) => only === null || current.values[i] === only;
    pen.fillStyle = "#c4c8cc";
    for (let i = 0; i < n; i++) if (!chosen(i)) dot(i);
    for (let i = 0; i < n; i++) {
      if (chosen(i)) {
        pen.fillStyle = colorOf(current, i);
        dot(i);
      }
    }
  }

  function drawKey() {
    key.replaceChildren();
    if (!current.names) {
      const item = document.createElement("li"), bar = document.createElement("i");
      item.className = "scale";
      bar.style.background = `linear-gradient(90deg, ${current.scale.join(",")})`;
      item.append("0", bar, "1");
      key.append(item);
      return;
    }
    const counts = new Map();
    for (const code of current.values) counts.set(code, (counts.get(code) || 0) + 1);
    current.names.forEach((name, code) => {
      if (!counts.has(code)) return;
      const item = document.createElement("li"), button = document.createElement("button");
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = current.colors[code];
      button.type = "button";
      button.setAttribute("aria-pressed", String(only === code));
      button.append(swatch, name);
      button.addEventListener("click", () => {
        only = only === code ? null : code;
        [...key.querySelectorAll("button")].forEach((b) =>
          b.setAttribute("aria-pressed", String(b === button && only !== null)));
        draw();
      });
      item.append(button);
      key.append(item);
    });
  }

  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), at = place(box.width, box.height);
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    let best = -1, nearest = 100;
    for (let i = 0; i < n; i++) {
      const [a, b] = at(i), distance = (a - left) ** 2 + (b - top) ** 2;
      if (distance < nearest) [best, nearest] = [i, distance];
    }
    tip.hidden = best < 0;
    if (best < 0) return;
    tip.textContent = data.layers
      .map((l) => `${l.label}: ${l.names ? l.names[l.values[best]] : (l.values[best] / 255).toFixed(2)}`)
      .join("\n");
    tip.style.left = `${Math.max(0, Math.min(left + 12, box.width - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, top + 12 + tip.offsetHeight > box.height ? top - tip.offsetHeight - 12 : top + 12)}px`;
  });
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));
  for (const input of document.querySelectorAll("input[name=layer]")) {
    input.addEventListener("change", () => {
      [current, only] = [data.layers[Number(input.value)], null];
      drawKey();
      draw();
    });
  }
  new ResizeObserver(draw).observe(canvas);
  drawKey();
}

const mapData = document.getElementById("map-data");
if (mapData) drawMap(JSON.parse(mapData.textContent));
