// Draws attribution graphs: fills each element .hfsae-graph from the script of JSON inside it,
// {graph, texts, note, opens}. The page that opens offline has it, and the app. In order: words,
// reading a graph, what is shown, where it lies, the drawing, the panel beside it, mouse and keys.
(() => {
  const ROW = 26, COLUMN = 46, LETTERS = 7, LISTED = 10; // pixels; characters; inputs and outputs in the panel
  const INITIAL = 600; // edges that are drawn while nothing is selected, the strongest
  const SVG = ["svg", "g", "path", "circle", "rect", "text", "title"];

  function make(name, attributes = {}, ...children) {
    const node = SVG.includes(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "onclick") node.addEventListener("click", value);
      else if (value === true) node.setAttribute(key, "");
      else if (value !== false && value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children); // texts stay texts
    return node;
  }

  const short = (value) => (typeof value === "number" ? Number(value.toPrecision(3)).toString() : "-");
  const seen = (token) => token.replace(/^ +/, (spaces) => "␣".repeat(spaces.length)).replace(/\n/g, "↵") || "∅";
  const cut = (text, width) => (text.length * LETTERS <= width ? text : text.slice(0, Math.max(1, Math.floor(width / LETTERS) - 1)) + "…");
  const KINDS = {embedding: "token", logit: "logit", "mlp reconstruction error": "error"};

  class View {
    constructor(root) {
      this.root = root;
      const {graph, texts, note, opens} = JSON.parse(root.querySelector("script").textContent);
      Object.assign(this, {graph, texts, note, opens});
      this.tokens = graph.metadata.prompt_tokens;
      this.nodes = new Map(graph.nodes.map((node) => [node.node_id, this.read(node)]));
      for (const {source, target, weight} of graph.links) {
        this.nodes.get(target).inputs.push([source, weight]);
        this.nodes.get(source).outputs.push([target, weight]);
      }
      for (const node of this.nodes.values()) node.total = node.inputs.reduce((sum, [, weight]) => sum + Math.abs(weight), 0);
      const {pinnedIds = [], supernodes = []} = graph.qParams ?? {};
      this.pinned = new Set(pinnedIds.filter((id) => this.nodes.has(id)));
      this.groups = supernodes.map(([name, ...ids]) => ({name, ids: ids.filter((id) => this.nodes.has(id)), open: false}));
      this.groups = this.groups.filter(({ids}) => ids.length);
      this.selected = ""; // id of an item: of a node, or "group 0"
      this.frame();
      this.draw();
      this.stage.scrollLeft = this.stage.scrollWidth; // the prediction is at the end
      let width = this.stage.clientWidth;
      new ResizeObserver(() => { if (width !== (width = this.stage.clientWidth)) this.draw(); }).observe(this.stage);
    }

    read(node) {
      const kind = KINDS[node.feature_type] ?? "feature", layer = node.layer, at = node.ctx_idx, token = seen(this.tokens[at]);
      const latent = node.node_id.split("_")[1], on = `on token ${at}, ${token}`;
      const name = {
        feature: node.clerp || `feature ${layer}/${latent}`, error: `error of block ${layer}`,
        token: token, logit: node.clerp || node.node_id,
      }[kind];
      const about = {
        feature: `Feature ${layer}/${latent} (block/latent) ${on}; activation ${short(node.activation)}`,
        error: `Error of block ${layer} ${on}: what no feature explains there`,
        token: `Token ${at} of the text`, logit: `The next token; probability ${short(node.token_prob)}`,
      }[kind];
      const row = {token: -1, logit: Infinity}[kind] ?? Number(layer);
      return {id: node.node_id, kind, row, at, name, about, layer, latent: Number(latent), page: this.texts[node.feature],
              influence: node.influence ?? 0, inputs: [], outputs: []};
    }

    // ---- what is shown: items, each a node or a closed group of nodes, and the edges between them

    itemOf(id) {
      const i = this.groups.findIndex((group) => !group.open && group.ids.includes(id));
      return i < 0 ? id : `group ${i}`;
    }

    item(id) {
      if (this.nodes.has(id)) return {...this.nodes.get(id), members: [id]};
      const group = this.groups[Number(id.split(" ")[1])];
      const members = group.ids.map((member) => this.nodes.get(member));
      const first = members.reduce((a, b) => (b.influence < a.influence ? b : a)); // the strongest: it gives the place
      return {id, kind: "group", row: first.row, at: first.at, name: group.name, members: group.ids, about: `${members.length} nodes, shown as one`};
    }

    // [id of an item, summed weight] of a side of an item, the largest first; all of the file, shown or not
    beside(item, side) {
      const sums = new Map();
      for (const member of item.members) {
        for (const [other, weight] of this.nodes.get(member)[side]) {
          const id = this.itemOf(other);
          if (id !== item.id) sums.set(id, (sums.get(id) ?? 0) + weight);
        }
      }
      return [...sums].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    }

    shown() {
      const always = (node) => node.kind === "token" || node.kind === "logit" || this.pinned.has(node.id) || node.id === this.selected;
      const ids = new Set();
      for (const node of this.nodes.values()) {
        const id = this.itemOf(node.id);
        if (id !== node.id || always(node) || node.influence <= this.limit()) ids.add(id);
      }
      const items = new Map([...ids].map((id) => [id, this.item(id)])), edges = [];
      for (const item of items.values()) {
        const total = item.members.reduce((sum, member) => sum + this.nodes.get(member).total, 0);
        for (const [source, weight] of this.beside(item, "inputs"))
          if (items.has(source)) edges.push({source, target: item.id, weight, share: Math.abs(weight) / total});
      }
      edges.sort((a, b) => a.share - b.share); // strong ones are drawn last, on top
      return {items, edges};
    }

    limit() {
      return Number(this.slider.value) + 1e-6;
    }

    // ---- where: rows are blocks, columns tokens; what shares a cell stands side by side

    place(items, width) {
      const wide = (item) => (item.kind === "group" ? Math.min(130, 16 + LETTERS * item.name.length) : item.kind === "feature" ? 16 : 14);
      const cells = new Map(), logits = [];
      for (const item of items.values()) {
        if (item.kind === "logit") { logits.push(item); continue; }
        if (item.kind === "token") continue;
        const key = `${item.row} ${item.at}`;
        cells.set(key, [...(cells.get(key) ?? []), item]);
      }
      const columns = this.tokens.map(() => COLUMN);
      for (const cell of cells.values()) columns[cell[0].at] = Math.max(columns[cell[0].at], 10 + cell.reduce((sum, item) => sum + wide(item), 0));
      const spare = Math.max(0, width - columns.reduce((a, b) => a + b, 0)) / columns.length;
      const ends = columns.map(((end) => (column) => (end += column + spare))(0));
      const middle = (at) => ends[at] - (columns[at] + spare) / 2;
      const rows = [...new Set([...items.values()].map((item) => item.row))].filter(isFinite).sort((a, b) => b - a);
      const top = Math.max(1, logits.length) * ROW + 12;
      const height = new Map(rows.map((row, i) => [row, top + (i + 0.5) * ROW]));
      for (const item of items.values()) {
        if (item.kind === "token") Object.assign(item, {x: middle(item.at), y: height.get(-1) + 6, wide: columns[item.at] + spare - 6});
      }
      for (const cell of cells.values()) {
        let x = middle(cell[0].at) - cell.reduce((sum, item) => sum + wide(item), 0) / 2;
        for (const item of cell) {
          Object.assign(item, {x: x + wide(item) / 2, y: height.get(item.row), wide: wide(item) - 4});
          x += wide(item);
        }
      }
      const room = Math.min(220, ends.at(-1) - 8);
      logits.forEach((item, i) => Object.assign(item, {x: ends.at(-1) - room / 2 - 4, y: (i + 0.5) * ROW + 4, wide: room}));
      return {rows, height, width: ends.at(-1), bottom: top + rows.length * ROW + 12};
    }

    // ---- the drawing

    draw() {
      const {items, edges} = this.shown(), chosen = this.selected;
      const {rows, height, width, bottom} = this.place(items, this.stage.clientWidth);
      const focused = this.stage.contains(document.activeElement) && document.activeElement.dataset.id;
      const lines = chosen ? edges.filter((edge) => edge.source === chosen || edge.target === chosen) : edges.slice(-INITIAL);
      const drawn = make("svg", {width, height: bottom, role: "group", "aria-label": "nodes; arrows lead from one to another, Enter selects, Escape clears"});
      for (const {source, target, weight, share} of lines) {
        const a = items.get(source), b = items.get(target), half = (a.y + b.y) / 2;
        drawn.append(make("path", {
          d: `M${a.x} ${a.y}C${a.x} ${half} ${b.x} ${half} ${b.x} ${b.y}`, class: weight < 0 ? "hg-minus" : "hg-plus",
          "stroke-width": 0.5 + 4 * share, "stroke-opacity": (chosen ? 0.35 : 0.1) + 0.6 * Math.sqrt(share),
        }));
      }
      const near = new Set(lines.flatMap(({source, target}) => [source, target]));
      this.order = [...items.values()].sort((a, b) => a.y - b.y || a.x - b.x);
      const stop = items.has(focused) ? focused : items.has(chosen) ? chosen : this.order[0]?.id; // one stop for Tab
      for (const item of this.order) {
        const text = ["feature", "error"].includes(item.kind) ? "" : cut(item.kind === "logit" ? seen(item.name) : item.name, item.wide - 6);
        const pinned = item.members.length === 1 && this.pinned.has(item.id), name = item.name.startsWith(text) ? item.name : `${text}, ${item.name}`;
        const words = `${name}. ${item.about}${pinned ? "; pinned" : ""}`; // it has what is seen, for those who speak to the machine
        const classes = ["hg-node", `hg-${item.kind}`, pinned && "hg-pinned", chosen && !near.has(item.id) && item.id !== chosen && "hg-far"];
        const g = make("g", {class: classes.filter(Boolean).join(" "), "data-id": item.id, role: "button", tabindex: item.id === stop ? 0 : -1,
                             "aria-pressed": String(item.id === chosen), "aria-label": words, transform: `translate(${item.x} ${item.y})`}, make("title", {}, words));
        if (item.kind === "feature") g.append(make("circle", {r: 6}));
        else if (item.kind === "error") g.append(make("rect", {x: -4.5, y: -4.5, width: 9, height: 9}));
        else {
          g.append(make("rect", {x: -item.wide / 2, y: -10, width: item.wide, height: 20, rx: 4}));
          g.append(make("text", {"text-anchor": "middle", y: 4}, text));
        }
        drawn.append(g);
      }
      this.stage.replaceChildren(drawn);
      if (focused) drawn.querySelector("[tabindex='0']")?.focus({preventScroll: true});
      const labels = rows.filter((row) => row >= 0).map((row) => [row, height.get(row)]);
      this.gutter.replaceChildren(...labels.map(([row, y]) => make("span", {style: `top: ${y}px`}, String(row))));
      const n = [...items.values()].reduce((sum, item) => sum + item.members.length, 0);
      const faint = !chosen && edges.length > INITIAL ? `, of which the strongest ${INITIAL} are drawn` : "";
      this.count.textContent = `${n} of ${this.nodes.size} nodes, ${edges.length} edges${faint}`;
      this.tell(items);
    }

    // ---- what stands around it, once

    frame() {
      const {metadata} = this.graph, strongest = [...this.nodes.values()].map(({influence}) => influence);
      const [low, high] = [Math.min(...strongest), Math.max(...strongest)];
      const facts = {"replacement score": metadata.replacement_score, "completeness score": metadata.completeness_score,
                     "largest error of a sum": metadata.largest_error_of_a_sum};
      const text = make("p", {class: "hg-text"}, ...this.tokens.map((token) => make("span", {}, token)));
      const terms = Object.entries(facts).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, short(value))));
      this.slider = make("input", {type: "range", min: low, max: high, step: "any", value: high, "aria-label": "share of influence shown"});
      this.share = make("output", {}, short(high));
      this.slider.addEventListener("input", () => { this.share.textContent = short(Number(this.slider.value)); this.draw(); });
      this.count = make("span", {class: "hg-count", role: "status"});
      const tools = [
        make("label", {}, "Influence shown ", this.slider, this.share), this.count,
        make("button", {type: "button", onclick: () => this.select("")}, "Clear"),
        make("button", {type: "button", onclick: () => this.download()}, "Download JSON"),
      ];
      const page = document.documentElement; // the app has a button of its own
      if (!window.hfsae) tools.push(make("button", {type: "button", onclick: () => page.classList.toggle("dark")}, "Dark or light"));
      this.stage = make("div", {class: "hg-stage"});
      this.gutter = make("div", {class: "hg-gutter", "aria-hidden": "true"});
      this.panel = make("aside", {class: "hg-panel", "aria-label": "the selected node"});
      const key = make("p", {class: "hg-key"}, "Rows are blocks, from tokens at the bottom to the next token at the top; columns are the text's tokens. ",
        make("b", {class: "hg-swatch hg-circle"}), " feature ", make("b", {class: "hg-swatch"}), " error ",
        make("b", {class: "hg-line"}), " raises ", make("b", {class: "hg-line hg-dashed"}), " lowers; thick: a large share of what its target gets.");
      this.root.append(
        make("header", {}, make("h2", {}, metadata.slug), text, make("dl", {}, ...terms), make("p", {class: "hg-note"}, this.note)),
        make("div", {class: "hg-tools"}, ...tools), key,
        make("div", {class: "hg-main"}, make("div", {class: "hg-graph"}, this.gutter, this.stage), this.panel),
      );
      this.stage.addEventListener("click", ({target}) => this.select(target.closest("[data-id]")?.dataset.id ?? ""));
      this.root.addEventListener("keydown", (event) => this.key(event));
    }

    // ---- the panel: the selected item, or what to do; then what is pinned, and groups

    tell(items) {
      const item = this.selected && this.item(this.selected), parts = [];
      const button = (words, onclick, more = {}) => make("button", {type: "button", onclick, ...more}, words);
      const link = (id, weight, largest) => {
        const other = items.get(id) ?? this.item(id), amount = weight === undefined ? [] : [make("span", {}, short(weight))];
        const bar = weight === undefined ? [] : [make("i", {class: weight < 0 ? "hg-minus" : "hg-plus", style: `width: ${(100 * Math.abs(weight)) / largest}%`})];
        return make("li", {}, button(other.name, () => this.select(id), {title: other.about}), ...amount, ...bar);
      };
      if (!item) parts.push(make("p", {class: "hg-quiet"}, "Click a node, or move to one by arrow keys and press Enter: its name, inputs and outputs are shown here. Escape clears."));
      else {
        const first = this.nodes.get(item.members[0]), offset = this.opens[first.layer];
        const isPinned = item.members.every((id) => this.pinned.has(id)), acts = [];
        acts.push(button(isPinned ? "Unpin" : "Pin", () => { for (const id of item.members) isPinned ? this.pinned.delete(id) : this.pinned.add(id); this.draw(); }));
        if (item.kind === "group") acts.push(button("Show its nodes", () => { this.groups[Number(item.id.split(" ")[1])].open = true; this.select(""); }));
        if (item.kind === "feature" && offset !== undefined) acts.push(button("Open its page", () => {}, {"data-do": "open", "data-at": offset + item.latent}));
        parts.push(make("h3", {}, item.name), make("p", {}, item.about), make("p", {class: "hg-acts"}, ...acts));
        if (item.kind === "group") parts.push(make("h4", {}, "Members"), make("ul", {}, ...item.members.map((id) => make("li", {}, `${this.nodes.get(id).name}, ${this.nodes.get(id).about}`))));
        for (const [side, words] of [["inputs", "Strongest inputs"], ["outputs", "Strongest outputs"]]) {
          const list = this.beside(item, side);
          if (!list.length) continue;
          const rest = list.length > LISTED ? [make("p", {class: "hg-quiet"}, `and ${list.length - LISTED} weaker`)] : [];
          parts.push(make("h4", {}, words), make("ol", {}, ...list.slice(0, LISTED).map(([id, weight]) => link(id, weight, Math.abs(list[0][1])))), ...rest);
        }
        if (item.kind === "feature" && first.page) parts.push(...this.page(first.page));
      }
      const pinned = [...this.pinned].filter((id) => this.itemOf(id) === id), open = this.groups.filter((group) => group.open);
      if (pinned.length) parts.push(make("h4", {}, "Pinned"), make("ul", {}, ...pinned.map((id) => link(id))));
      if (pinned.length > 1) {
        const name = make("input", {placeholder: "name of the group", "aria-label": "name of the group", maxlength: 60});
        const group = () => { this.groups.push({name: name.value.trim() || "group", ids: pinned, open: false}); this.select(`group ${this.groups.length - 1}`); };
        parts.push(make("p", {class: "hg-acts"}, name, button("Show the pinned as one", group)));
      }
      if (open.length) parts.push(make("p", {class: "hg-acts"}, ...open.map((group) => button(`Close ${group.name}`, () => { group.open = false; this.select(""); }))));
      const had = this.panel.contains(document.activeElement);
      this.panel.replaceChildren(...parts);
      if (had) this.panel.querySelector("button, input")?.focus();
    }

    page({examples, promotes}) {
      const strip = (example) => {
        const top = Math.max(...example.map(([, activation]) => activation), 1e-9);
        const token = ([text, activation]) => make("span", {style: `--heat: ${Math.round((60 * Math.max(0, activation)) / top)}%`}, text);
        return make("p", {class: "hg-example"}, ...example.map(token));
      };
      const parts = promotes.length ? [make("h4", {}, "Makes likelier"), make("p", {}, promotes.map(seen).join("  "))] : [];
      return examples.length ? [...parts, make("h4", {}, "Top texts"), ...examples.map(strip)] : parts;
    }

    // ---- mouse and keys

    select(id) {
      this.selected = id === this.selected ? "" : id;
      this.draw();
      if (id) this.stage.querySelector(`[data-id="${CSS.escape(id)}"]`)?.scrollIntoView({block: "nearest", inline: "nearest"});
    }

    key(event) {
      if (event.key === "Escape") { this.select(""); return; }
      const id = event.target.closest?.("[data-id]")?.dataset.id, here = this.order.find((item) => item.id === id);
      if (!here) return;
      if (event.key === "Enter" || event.key === " ") this.select(id);
      else if (event.key.startsWith("Arrow")) {
        const [dx, dy] = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
        const ahead = this.order.filter(({x, y}) => (dx ? Math.abs(y - here.y) < 1 && (x - here.x) * dx > 0 : (y - here.y) * dy > 1));
        const cost = ({x, y}) => Math.abs(x - here.x) + 1000 * Math.abs(y - here.y);
        const next = ahead.sort((a, b) => cost(a) - cost(b))[0];
        for (const node of this.stage.querySelectorAll("[data-id]")) node.setAttribute("tabindex", node.dataset.id === (next ?? here).id ? 0 : -1);
        this.stage.querySelector("[tabindex='0']").focus();
      } else return;
      event.preventDefault();
    }

    download() {
      const groups = this.groups.map(({name, ids}) => [name, ...ids]), qParams = {...this.graph.qParams, pinnedIds: [...this.pinned], supernodes: groups};
      const file = new Blob([JSON.stringify({...this.graph, qParams}, null, 1)], {type: "application/json"});
      const link = make("a", {href: URL.createObjectURL(file), download: `${this.graph.metadata.slug}.json`});
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }
  }

  const drawAll = (part) => {
    for (const root of part.querySelectorAll(".hfsae-graph:not(.hg-ready)")) {
      root.classList.add("hg-ready");
      new View(root);
    }
  };
  if (window.hfsae) window.hfsae.onDrawn.push(drawAll); // the app's panels are drawn anew
  else drawAll(document);
})();
