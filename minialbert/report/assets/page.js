// What a report page can do beyond what its markup shows: themes, sorting, choices in charts, attention maps.
(() => {
  "use strict";

  const THEMES = ["auto", "light", "dark"];
  const root = document.documentElement;

  // A page from a disk may be refused storage; the theme then lasts as long as the page.
  const stored = (use) => {
    try {
      return use(localStorage);
    } catch {
      return null;
    }
  };
  // The style knows of no theme "auto", which leaves the choice to the system. Set before the body is there, so that
  // nothing flashes.
  root.dataset.theme = THEMES.find((one) => one === stored((storage) => storage.getItem("theme"))) ?? "auto";

  const setUpTheme = (button) => {
    const set = (theme) => {
      root.dataset.theme = theme;
      button.textContent = `Theme: ${theme}`;
    };
    button.addEventListener("click", () => {
      set(THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length]);
      stored((storage) => storage.setItem("theme", root.dataset.theme));
    });
    set(root.dataset.theme);
    button.hidden = false;
  };

  const setUpContents = (nav) => {
    const wide = matchMedia("(min-width: 68rem)");
    const details = nav.querySelector("details");
    const fold = () => details.toggleAttribute("open", wide.matches);
    wide.addEventListener("change", fold);
    fold();
    nav.addEventListener("click", (event) => {
      if (event.target.closest("a") && !wide.matches) details.open = false;
    });

    const links = new Map([...nav.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
    const seen = new Set();
    const mark = () => {
      const current = [...links.keys()].filter((id) => seen.has(id)).pop();
      for (const [id, link] of links) link.ariaCurrent = id === current ? "true" : null;
    };
    // A line near the top decides; of nested parts that it crosses, the innermost comes last.
    const observer = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target.id);
        mark();
      },
      { rootMargin: "-15% 0px -84% 0px" },
    );
    for (const id of links.keys()) observer.observe(document.getElementById(id));
  };

  // --- what a reader takes away

  const make = (name, values) => Object.assign(document.createElement(name), values);
  const save = (title, ending, content) => {
    const name = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 60);
    const link = make("a", { href: URL.createObjectURL(new Blob([content])), download: `${name}.${ending}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };

  // Text that a spreadsheet would take for a formula gets a quote in front, as in the tables that Python writes.
  const csvCell = (value) => {
    const text = Number.isNaN(Number(value)) && /^\s*[=+\-@]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (rows) => rows.map((row) => `${row.map(csvCell).join(",")}\n`).join("");

  const LATEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$" };
  Object.assign(LATEX, { "−": "$-$", "∗": "$\\ast$", "†": "\\dag{}", "‡": "\\ddag{}" });
  const latexCell = (text) => text.replace(/[\\~^±−∗†‡&%$#_{}]/g, (one) => LATEX[one] ?? `\\${one}`);
  const latex = (rows) => {
    const [head, ...lines] = rows.map((row) => `${row.map(latexCell).join(" & ")} \\\\`);
    const all = ["\\toprule", head, "\\midrule", ...lines, "\\bottomrule", "\\end{tabular}"];
    return `\\begin{tabular}{l${"r".repeat(rows[0].length - 1)}}\n${all.join("\n")}\n`;
  };

  const tools = (before, title, actions) => {
    const bar = make("p", { className: "tools" });
    for (const [label, act] of Object.entries(actions)) {
      bar.append(make("button", { type: "button", textContent: label, ariaLabel: `Save ${title} as ${label}`, onclick: act }));
    }
    before.after(bar);
    return bar;
  };

  // --- tables

  const LONG_TABLE = 12;

  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const keyOf = (cell) => {
    if (!cell || "missing" in cell.dataset) return null;
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
  };
  const compareKeys = (a, b) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return typeof a === "number" ? a - b : collator.compare(a, b);
  };

  const setUpTable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const original = [...body.rows];
    const sort = (index) => {
      const before = heads[index].getAttribute("aria-sort");
      const order = { ascending: "descending", descending: null }[before] ?? (before ? null : "ascending");
      for (const head of heads) head.removeAttribute("aria-sort");
      if (!order) {
        body.append(...original);
        return;
      }
      heads[index].setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = original.map((row) => ({ row, key: keyOf(row.cells[index]) }));
      rows.sort((a, b) => {
        // What is missing comes last in both directions.
        if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
        return sign * compareKeys(a.key, b.key);
      });
      body.append(...rows.map(({ row }) => row));
    };
    heads.forEach((head, index) => {
      const button = head.querySelector("button");
      button.disabled = false;
      button.addEventListener("click", () => sort(index));
    });
    const title = table.caption.textContent;
    const text = (cell) => ("missing" in cell.dataset ? "" : (cell.querySelector("details")?.lastChild ?? cell).textContent);
    const shown = () => [...table.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map(text));
    const bar = tools(table.closest(".scroll"), title, {
      CSV: () => save(title, "csv", csv(shown())),
      LaTeX: () => save(title, "tex", latex(shown())),
    });
    if (original.length <= LONG_TABLE) return;
    const search = make("input", { type: "search", placeholder: "Search", ariaLabel: `Search in ${title}` });
    search.addEventListener("input", () => {
      for (const row of original) row.hidden = !row.textContent.toLowerCase().includes(search.value.toLowerCase());
    });
    bar.prepend(search);
    table.closest(".scroll").before(bar); // at hand, however long the table is
  };

  // --- charts

  const svgElement = (name, attributes = {}, text = "") => {
    const element = document.createElementNS(document.querySelector("svg").namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };

  /** A drawing as a file of its own: in light colours, with its title and the legend of what is shown. */
  const drawingOf = (figure, title) => {
    const drawing = figure.querySelector(".chart").cloneNode(true);
    const [, , width, height] = drawing.getAttribute("viewBox").split(" ").map(Number);
    for (const one of drawing.querySelectorAll("[hidden]")) one.remove();
    const entries = figure.querySelectorAll('.legend [aria-pressed="true"], .names li');
    entries.forEach((entry, at) => {
      const line = svgElement("g", { transform: `translate(12 ${height + 18 * at})` });
      line.append(...[...entry.querySelectorAll("svg")].map((swatch) => swatch.cloneNode(true)));
      line.append(svgElement("text", { x: 44, y: 11 }, entry.textContent));
      drawing.append(line);
    });
    drawing.prepend(svgElement("text", { x: 4, y: -10, "font-weight": "bold" }, title));
    const tall = height + 34 + 18 * entries.length;
    const all = { width, height: tall, viewBox: `0 -28 ${width} ${tall}`, "font-family": "sans-serif", "font-size": 10.5 };
    for (const [name, value] of Object.entries(all)) drawing.setAttribute(name, value);
    for (const line of drawing.querySelectorAll(".series > path, .swatch path")) line.setAttribute("fill", "none");
    const style = document.querySelector("style").textContent;
    const light = (_, name) => style.match(new RegExp(`${name}: light-dark\\((#\\w+)`))[1];
    return new XMLSerializer().serializeToString(drawing).replace(/var\((--[\w-]+)\)/g, light);
  };

  const savePng = async (title, drawing) => {
    const image = make("img", { src: `data:image/svg+xml,${encodeURIComponent(drawing)}` });
    await image.decode();
    const canvas = make("canvas", { width: 3 * image.width, height: 3 * image.height });
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => save(title, "png", blob));
  };

  /** The browser's print dialog with nothing but the figure, in vectors. */
  const savePdf = (figure) => {
    figure.classList.add("alone");
    addEventListener("afterprint", () => figure.classList.remove("alone"), { once: true });
    print();
  };

  // Where a chart of lines has its axes, as charts.py draws it, and what is left around the lines above and below.
  const AXES = { left: 54, right: 618, top: 38, bottom: 310, room: 0.05 };
  const tickText = (value) => {
    const [size, letter] = [[1e9, "G"], [1e6, "M"], [1e4, "k"], [0, ""]].find(([least]) => Math.abs(value) >= least);
    return `${Number((value / (letter === "k" ? 1e3 : size || 1)).toPrecision(6))}${letter}`;
  };
  const ticksOf = (low, high) => {
    const size = 10 ** Math.floor(Math.log10((high - low) / 4));
    const step = [1, 2, 5, 10].map((one) => one * size).find((one) => (high - low) / one <= 6);
    const first = Math.ceil(low / step);
    return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, at) => (first + at) * step);
  };

  /** Dragging across a chart of lines shows that part of it, as high as its lines are there. */
  const setUpZoom = (figure, bar, { columns, x, series }) => {
    const drawing = figure.querySelector(".chart");
    const groups = [...drawing.querySelectorAll(".series")];
    const rest = [...drawing.querySelectorAll("text, path, use")].filter((one) => !one.matches("defs *, .series > path"));
    const paths = groups.map((group) => group.querySelector("path"));
    const before = paths.map((path) => path.getAttribute("d"));
    const isLog = [...drawing.querySelectorAll("text")].some((one) => one.textContent === `${columns[2]}, logarithmic`);
    const [up, back] = isLog ? [Math.log10, (value) => 10 ** value] : [Number, Number];
    const measured = series.map(([, at, values]) => values.map((y, i) => [x[at][i], up(y)]));
    let points = measured;
    const ends = (values) => [Math.min(...values), Math.max(...values)];
    const all = ends(points.flat().map(([value]) => value));
    let shown = all;
    const reset = make("button", { type: "button", textContent: "Whole", hidden: true, ariaLabel: "Show the whole chart" });
    bar.append(reset, make("span", { textContent: "Drag across the lines to zoom." }));
    const smooth = make("button", { type: "button", textContent: "Smooth", ariaLabel: "Show a moving average" });
    if (Math.max(...measured.map((line) => line.length)) >= 20) bar.append(smooth);

    const show = (low, high) => {
      const within = points.map((line) => line.filter(([value]) => low <= value && value <= high));
      const seen = within.filter((_, at) => !groups[at].hasAttribute("hidden")).flat();
      if (seen.length < 2) return;
      const [least, most] = ends(seen.map(([, value]) => value));
      const room = (most - least || Math.abs(most) || 1) * AXES.room;
      const place = (value, from, to, start, end) => (start + ((value - from) / (to - from)) * (end - start)).toFixed(1);
      const across = (value) => place(value, low, high, AXES.left, AXES.right);
      const along = (value) => place(value, least - room, most + room, AXES.bottom, AXES.top);
      const frame = svgElement("g", { class: "frame", fill: "var(--muted)" });
      const text = (name, x, y, anchor) => frame.append(svgElement("text", { x, y, "text-anchor": anchor }, name));
      const [bottom, top] = [least - room, most + room];
      const isWide = isLog && top - bottom > 1; // more than a factor of ten: the first digit of evenly spread values
      const rounded = () => ticksOf(bottom, top).map((value) => Number(back(value).toPrecision(1)));
      for (const value of new Set(isWide ? rounded() : ticksOf(back(bottom), back(top)))) {
        const height = along(up(value));
        const line = `M${AXES.left} ${height}H${AXES.right}`;
        frame.append(svgElement("path", { d: line, stroke: "var(--rule)", "stroke-width": 0.8 }));
        text(tickText(value), AXES.left - 9, Number(height) + 4, "end");
      }
      for (const value of ticksOf(low, high)) text(tickText(value), across(value), AXES.bottom + 18, "middle");
      text(columns[1], (AXES.left + AXES.right) / 2, AXES.bottom + 38, "middle");
      text(columns[2] + (isLog ? ", logarithmic" : ""), 4, AXES.top - 16, "start");
      within.forEach((line, at) => {
        paths[at].setAttribute("d", line.map(([a, b], i) => `${i ? "L" : "M"}${across(a)} ${along(b)}`).join(""));
      });
      drawing.querySelector(".frame")?.remove();
      drawing.prepend(frame);
      for (const one of rest) one.setAttribute("visibility", "hidden");
      [shown, reset.hidden] = [[low, high], false];
    };
    const smoothed = (line) => {
      const reach = Math.ceil(line.length / 40); // a twentieth of the line stands for one point
      return line.map(([value], at) => {
        const near = line.slice(Math.max(0, at - reach), at + reach + 1);
        return [value, near.reduce((sum, [, y]) => sum + y, 0) / near.length];
      });
    };
    smooth.addEventListener("click", () => {
      points = measured.map(smoothed);
      show(...shown);
    });
    reset.addEventListener("click", () => {
      points = measured;
      drawing.querySelector(".frame").remove();
      for (const one of rest) one.removeAttribute("visibility");
      paths.forEach((path, at) => path.setAttribute("d", before[at]));
      [shown, reset.hidden] = [all, true];
    });
    const valueAt = (event) => {
      const { x: place } = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
      const share = Math.min(1, Math.max(0, (place - AXES.left) / (AXES.right - AXES.left)));
      return shown[0] + share * (shown[1] - shown[0]);
    };
    drawing.addEventListener("pointerdown", (event) => {
      const [start, from] = [valueAt(event), event.clientX];
      drawing.setPointerCapture(event.pointerId);
      const least = 8; // pixels; a shorter way is a click
      const release = (end) => Math.abs(end.clientX - from) >= least && show(...ends([start, valueAt(end)]));
      drawing.addEventListener("pointerup", release, { once: true });
    });
  };

  const setUpValues = (figure) => {
    const { columns, x, series, rows } = JSON.parse(figure.querySelector("script").textContent);
    const title = figure.querySelector("figcaption").textContent;
    const lines = () => [columns, ...(rows ?? series.flatMap(([name, at, values]) => values.map((y, i) => [name, x[at][i], y])))];
    const details = figure.querySelector(".values");
    const fill = () => {
      const table = make("table", { ariaLabel: `${title}: values` });
      lines().forEach((line, at) => {
        table.insertRow().append(...line.map((value) => make(at ? "td" : "th", { textContent: value })));
      });
      const box = make("div", { className: "scroll", tabIndex: 0 });
      box.append(table);
      details.append(box);
    };
    if (details.open) fill();
    else details.addEventListener("toggle", fill, { once: true });
    details.hidden = false;
    const drawn = figure.querySelector(".chart") && {
      SVG: () => save(title, "svg", drawingOf(figure, title)),
      PNG: () => savePng(title, drawingOf(figure, title)),
      PDF: () => savePdf(figure),
    };
    const bar = tools(details, title, { ...drawn, CSV: () => save(title, "csv", csv(lines())) });
    // A scale that was stretched leaves nothing to zoom for.
    const isLinear = ![...figure.querySelectorAll(".chart text")].some((one) => one.textContent === `${columns[1]}, logarithmic`);
    if (drawn && series && isLinear && new Set(x.flat()).size > 2) setUpZoom(figure, bar, { columns, x, series });
  };

  // A series has one key in all charts of the page: what is hidden in one is hidden in all.
  const setUpCharts = () => {
    const buttons = [...document.querySelectorAll(".legend button")];
    const drawn = document.querySelectorAll(".chart [data-key]");
    const off = new Set();
    const show = (keys, wanted) => {
      for (const key of keys) off[wanted ? "delete" : "add"](key);
      for (const button of buttons) button.setAttribute("aria-pressed", String(!off.has(button.dataset.key)));
      for (const one of drawn) one.toggleAttribute("hidden", off.has(one.dataset.key));
    };
    for (const button of buttons) {
      button.disabled = false;
      button.addEventListener("click", () => show([button.dataset.key], off.has(button.dataset.key)));
    }
    for (const choices of document.querySelectorAll(".choices")) {
      const own = [...choices.closest("figure").querySelectorAll(".legend button")].map((one) => one.dataset.key);
      choices.hidden = false;
      choices.addEventListener("click", (event) => {
        const wanted = event.target.dataset.show;
        if (wanted) show(own, wanted === "true");
      });
    }
  };

  // --- attention maps

  const CELL = 20;
  const LONGEST = 12;

  // Colours by the cascade, so that they follow the theme without drawing again.
  const mix = (high, low, share) => `color-mix(in oklab, var(--map-${high}) ${(100 * share).toFixed(1)}%, var(--map-${low}))`;
  const rootOf = (value) => Math.sqrt(Math.min(1, Math.abs(value)));
  // The colour in the middle keeps the hue between two ends that have little; it is half-way in lightness.
  const fillOf = (value) => {
    const place = 2 * rootOf(value);
    return place <= 1 ? mix("middle", "low", place) : mix("high", "middle", place - 1);
  };
  const fillOfDifference = (value) => mix(value < 0 ? "less" : "more", "low", rootOf(value));

  const inflated = async (text) => {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  const setUpMaps = async (figure) => {
    const data = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    const picks = Object.fromEntries([...figure.querySelectorAll("[data-pick]")].map((one) => [one.dataset.pick, one]));
    const sides = Object.fromEntries([...figure.querySelectorAll(".map")].map((one) => [one.dataset.side, one]));
    const reading = figure.querySelector(".reading");
    const bytes = await inflated(data.maps);
    let cursor = null; // [row, column], the same in all maps
    let shown = null;


    const sum = (values) => values.reduce((total, value) => total + value, 0);
    const mean = (values) => sum(values) / values.length;
    const averaged = (maps) => Array.from(maps[0], (_, at) => mean(maps.map((map) => map[at])));

    /** The map of one head, or those of all, by query and key. */
    const planes = (start, heads, head, size) => {
      const chosen = head === "" ? [...Array(heads).keys()] : [Number(head)];
      return chosen.map((one) => bytes.subarray(start + one * size * size, start + (one + 1) * size * size));
    };

    /** Rows that sum to 1 again; those that sum to nothing stay as they are. */
    const distributions = (map, size) => {
      const totals = [...Array(size).keys()].map((row) => Math.max(1, sum(map.subarray(row * size, (row + 1) * size))));
      return Array.from(map, (value, at) => value / totals[Math.floor(at / size)]);
    };

    /** What rows of teacher and student share, as attention_maps.row_overlap has it for one sentence. */
    const overlap = (sides, size) => {
      const rows = sides.map((maps) => maps.map((map) => distributions(map, size)));
      const shared = (a, b) => sum(a.map((value, at) => Math.min(value, b[at]))) / size;
      if (rows[0].length === rows[1].length) return mean(rows[0].map((a, at) => shared(a, rows[1][at])));
      return shared(...rows.map(averaged));
    };

    const fill = (select, labels, values) => {
      const before = select.value;
      select.replaceChildren(...labels.map((label, index) => new Option(label, values[index])));
      if (values.includes(before)) select.value = before;
    };
    const indices = (count) => [...Array(count).keys()].map(String);

    const fillPicks = () => {
      const run = data.runs[picks.run ? Number(picks.run.value) : 0];
      const layers = run.layers.map((layer, index) => `iteration ${index + 1} = layer ${layer}`);
      fill(picks.sentence, run.sentences.map((one) => one.text), indices(run.sentences.length));
      fill(picks.iteration, layers, indices(layers.length));
      // Heads can be compared one by one only where both have as many.
      const heads = run.heads[0] === run.heads[1] ? indices(run.heads[0]) : [];
      fill(picks.head, ["mean over heads", ...heads.map((head) => `head ${Number(head) + 1}`)], ["", ...heads]);
    };

    const shorten = (token) => (token.length > LONGEST ? `${token.slice(0, LONGEST - 1)}…` : token);

    const draw = (side, title, values, fillAt) => {
      const { tokens } = shown;
      const size = tokens.length;
      const margin = 12 + 6.2 * Math.max(...tokens.map((token) => shorten(token).length));
      const extent = margin + size * CELL + 2;
      const drawing = sides[side].querySelector("svg");
      drawing.setAttribute("viewBox", `0 0 ${extent} ${extent}`);
      drawing.setAttribute("width", extent);
      drawing.style.minWidth = `${Math.round(0.62 * extent)}px`;
      drawing.setAttribute("aria-label", `${title}: attention, ${size} by ${size} tokens; arrow keys move between cells`);
      sides[side].querySelector(".map-title").textContent = title;
      const parts = tokens.flatMap((token, at) => {
        const middle = margin + (at + 0.5) * CELL;
        return [
          svgElement("text", { "data-row": at, x: margin - 5, y: middle + 4, "text-anchor": "end" }, shorten(token)),
          svgElement("text", { "data-column": at, transform: `translate(${middle + 4} ${margin - 5}) rotate(-90)` }, shorten(token)),
        ];
      });
      values.forEach((value, at) => {
        const [row, column] = [Math.floor(at / size), at % size];
        const place = { x: margin + column * CELL, y: margin + row * CELL, width: CELL, height: CELL };
        const cell = svgElement("rect", { class: "cell", "data-at": at, ...place });
        cell.style.fill = fillAt(value);
        parts.push(cell);
      });
      parts.push(svgElement("rect", { class: "cursor", width: CELL, height: CELL, visibility: "hidden" }));
      drawing.replaceChildren(...parts);
    };

    const read = () => {
      const { tokens, values } = shown;
      for (const side of Object.values(sides)) {
        const mark = side.querySelector(".cursor");
        if (!mark) continue;
        mark.setAttribute("visibility", cursor ? "visible" : "hidden");
        for (const label of side.querySelectorAll("text")) {
          const { row, column } = label.dataset;
          label.classList.toggle("at", cursor !== null && (Number(row) === cursor[0] || Number(column) === cursor[1]));
        }
        if (!cursor) continue;
        const cell = side.querySelector(`[data-at="${cursor[0] * tokens.length + cursor[1]}"]`);
        for (const name of ["x", "y"]) mark.setAttribute(name, cell.getAttribute(name));
      }
      if (!cursor) {
        reading.textContent = "Point at a cell, or move with the arrow keys, to read its values.";
        return;
      }
      const at = cursor[0] * tokens.length + cursor[1];
      const [teacher, student] = [values.teacher[at], values.student[at]].map((value) => value.toFixed(2));
      reading.textContent = `${tokens[cursor[0]]} → ${tokens[cursor[1]]}: teacher ${teacher}, student ${student}`;
    };

    const update = () => {
      const run = data.runs[picks.run ? Number(picks.run.value) : 0];
      const sentence = run.sentences[Number(picks.sentence.value)];
      const iteration = Number(picks.iteration.value);
      const size = sentence.tokens.length;
      const maps = ["teacher", "student"].map((side, index) =>
        planes(sentence[side][iteration], run.heads[index], picks.head.value, size),
      );
      const [teacher, student] = maps.map((one) => averaged(one).map((value) => value / 255));
      if (shown?.tokens !== sentence.tokens) cursor = null;
      shown = { tokens: sentence.tokens, values: { teacher, student } };
      draw("teacher", `Teacher ${run.teacher}, layer ${run.layers[iteration]}`, teacher, fillOf);
      draw("student", `Student ${run.student}, iteration ${iteration + 1}`, student, fillOf);
      sides.difference.hidden = !picks.difference.checked;
      if (picks.difference.checked) {
        const difference = student.map((value, at) => value - teacher[at]);
        draw("difference", "Student − teacher: blue is more, orange is less", difference, fillOfDifference);
      }
      const share = overlap(maps, size).toFixed(3);
      figure.querySelector(".overlap").textContent =
        run.heads[0] === run.heads[1]
          ? `Mean row overlap (1 − total variation), ${picks.head.selectedOptions[0].textContent}: ${share}`
          : `Mean row overlap of the maps averaged over heads (1 − total variation): ${share}`;
      read();
    };

    const KEYS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -Infinity], End: [0, Infinity] };
    const clamp = (value) => Math.max(0, Math.min(shown.tokens.length - 1, value));
    const point = (event) => {
      const cell = event.target.closest("[data-at]");
      if (!cell) return;
      const at = Number(cell.dataset.at);
      cursor = [Math.floor(at / shown.tokens.length), at % shown.tokens.length];
      read();
    };
    for (const side of Object.values(sides)) {
      const drawing = side.querySelector("svg");
      drawing.addEventListener("pointermove", point);
      drawing.addEventListener("pointerdown", point);
      drawing.addEventListener("focus", () => {
        cursor ??= [0, 0];
        read();
      });
      drawing.addEventListener("keydown", (event) => {
        const move = KEYS[event.key];
        if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        cursor = (cursor ?? [0, 0]).map((value, axis) => clamp(value + move[axis]));
        read();
        side.querySelector(".cursor").scrollIntoView({ block: "nearest", inline: "nearest" });
      });
    }

    if (picks.run) fill(picks.run, data.runs.map((run) => run.name), indices(data.runs.length));
    for (const pick of Object.values(picks)) {
      pick.addEventListener("change", () => {
        if (pick === picks.run) fillPicks();
        update();
      });
    }
    fillPicks();
    update();
    figure.querySelector(".map-app").hidden = false;
  };

  document.addEventListener("DOMContentLoaded", () => {
    setUpTheme(document.querySelector(".theme"));
    document.querySelectorAll(".contents").forEach(setUpContents);
    document.querySelectorAll("table").forEach(setUpTable);
    setUpCharts();
    document.querySelectorAll(".chart-block:has(.values)").forEach(setUpValues);
    document.querySelectorAll(".maps:has(.map-app)").forEach(setUpMaps);
  });
})();
