// The map of latents: drawn on a canvas, with names at the pointer; see latent_map in parts.html.
(() => {
  const REACH = 14; // pixels from a point at which it is pointed at; twice that for a finger
  let shown = null; // the last map, redrawn when highlights or the theme change

  const colour = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
  const mixed = (from, to, share) => {
    const parts = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    const [a, b] = [parts(from), parts(to)];
    return `rgb(${a.map((value, i) => Math.round(value + share * (b[i] - value))).join(",")})`;
  };
  const hits = () => {
    const text = document.querySelector("#map-found [data-hits]")?.dataset.hits ?? "";
    return new Set(text.split(" ").filter(Boolean).map(Number));
  };

  class LatentMap {
    constructor(section) {
      this.section = section;
      this.canvas = section.querySelector("canvas");
      this.numbers = Int16Array.from(section.dataset.points.split(" ").map(Number));
      this.names = section.querySelector(".hf-map-names").textContent.split("\n");
      this.button = section.querySelector("[data-do=open]");
      this.near = -1;
      this.whole();
      this.listen();
      new ResizeObserver(() => this.draw()).observe(this.canvas);
    }
    whole() { [this.zoom, this.left, this.top] = [1, 0, 0]; }
    // From a point's place to pixels: the map is as high as it is wide, in the middle.
    at(i) {
      const {clientWidth: w, clientHeight: h} = this.canvas, size = Math.min(w, h) / 1000;
      const x = (this.numbers[3 * i] - 500) * size, y = (this.numbers[3 * i + 1] - 500) * size;
      return [w / 2 + this.left + x * this.zoom * Math.min(1.5, w / h), h / 2 + this.top + y * this.zoom];
    }
    // Where a button enlarges: at what is highlighted and in view, or else in the middle.
    focus() {
      const {clientWidth: w, clientHeight: h} = this.canvas;
      const lit = [...hits()].map((i) => this.at(i)).filter(([x, y]) => x > 0 && y > 0 && x < w && y < h);
      if (!lit.length) return [w / 2, h / 2];
      return [0, 1].map((k) => lit.reduce((sum, place) => sum + place[k], 0) / lit.length);
    }
    draw() {
      const {clientWidth: w, clientHeight: h} = this.canvas, ratio = window.devicePixelRatio || 1;
      if (!w) return;
      this.canvas.style.touchAction = this.zoom > 1 ? "none" : "pan-y"; // a finger moves it, or the page
      [this.canvas.width, this.canvas.height] = [w * ratio, h * ratio];
      const pen = this.canvas.getContext("2d");
      pen.scale(ratio, ratio);
      const [cold, hot, quiet, ink] = ["--hf-cold", "--hf-hot", "--hf-quiet", "--hf-ink"].map(colour);
      const lit = hits(), n = this.numbers.length / 3;
      const size = Math.max(1.6, Math.min(5, 90 / Math.sqrt(n)) * Math.sqrt(this.zoom));
      const dot = (i, radius, fill, alpha) => {
        const [x, y] = this.at(i);
        if (x < -9 || y < -9 || x > w + 9 || y > h + 9) return;
        pen.globalAlpha = alpha;
        pen.fillStyle = fill;
        pen.beginPath();
        pen.arc(x, y, radius, 0, 7);
        pen.fill();
      };
      const shade = (i) => {
        const value = this.numbers[3 * i + 2] / 100;
        if (value < 0) return quiet;
        return value < 0.5 ? mixed(cold, quiet, value) : mixed(quiet, hot, 2 * value - 1);
      };
      for (let i = 0; i < n; i++) if (!lit.has(i)) {
        const fires = this.numbers[3 * i + 2] >= 0;
        dot(i, fires ? size : size / 2, shade(i), lit.size ? 0.3 : fires ? 0.8 : 0.4);
      }
      for (const i of lit) { dot(i, size + 3, ink, 1); dot(i, size + 1.5, shade(i), 1); }
      if (this.near >= 0) { dot(this.near, size + 4, ink, 1); dot(this.near, size + 2, hot, 1); }
    }
    nearest(x, y, reach) {
      let [best, least] = [-1, reach * reach];
      const lit = hits();
      for (let i = 0; i < this.numbers.length / 3; i++) {
        const [px, py] = this.at(i), d = ((px - x) ** 2 + (py - y) ** 2) * (lit.has(i) ? 0.25 : 1);
        if (d < least) [best, least] = [i, d];
      }
      return best;
    }
    point(i) {
      if (i === this.near) return;
      this.near = i;
      this.button.hidden = i < 0;
      this.button.dataset.at = i < 0 ? "" : i;
      this.button.textContent = `${i}: ${this.names[i] || "no name"}`;
      this.draw();
    }
    listen() {
      const place = (event) => {
        const box = this.canvas.getBoundingClientRect();
        return [event.clientX - box.left, event.clientY - box.top];
      };
      const find = (event) => this.nearest(...place(event), event.pointerType === "touch" ? 2 * REACH : REACH);
      let from = null;
      const fingers = new Map();
      const pinch = () => {
        const [[ax, ay], [bx, by]] = [...fingers.values()];
        return [(ax + bx) / 2, (ay + by) / 2, Math.hypot(ax - bx, ay - by) || 1];
      };
      for (const gone of ["pointerup", "pointercancel", "pointerleave"])
        this.canvas.addEventListener(gone, (event) => fingers.delete(event.pointerId));
      this.canvas.addEventListener("pointerdown", (event) => {
        fingers.set(event.pointerId, place(event));
        from = [...place(event), this.left, this.top, fingers.size > 1];
      });
      this.canvas.addEventListener("pointermove", (event) => {
        if (fingers.size === 2 && fingers.has(event.pointerId)) {
          const [x, y, apart] = pinch();
          fingers.set(event.pointerId, place(event));
          const [newX, newY, newApart] = pinch();
          [this.left, this.top] = [this.left + newX - x, this.top + newY - y];
          this.enlarge(newApart / apart, newX, newY);
          from = [...place(event), this.left, this.top, true];
          return;
        }
        if (!from || event.buttons === 0) return void (event.pointerType !== "touch" && this.point(find(event)));
        const [x, y] = place(event);
        if (Math.hypot(x - from[0], y - from[1]) > 5) from[4] = true;
        if (!from[4] || this.zoom === 1) return;
        [this.left, this.top] = [from[2] + x - from[0], from[3] + y - from[1]];
        this.draw();
      });
      this.canvas.addEventListener("click", (event) => {
        const moved = from?.[4], i = find(event);
        from = null;
        if (moved) return;
        const again = i === this.near; // a finger's first tap shows the name, its second opens
        this.point(i);
        if (i >= 0 && (event.pointerType !== "touch" || again)) this.button.click();
      });
      this.canvas.addEventListener("dblclick", (event) => this.enlarge(1.6, ...place(event)));
      this.section.addEventListener("click", (event) => {
        const by = event.target.dataset?.zoom;
        if (by === "0") { this.whole(); this.draw(); }
        else if (by) this.enlarge(Number(by), ...this.focus());
      });
    }
    enlarge(by, x, y) {
      const zoom = Math.min(40, Math.max(1, this.zoom * by)), ratio = zoom / this.zoom;
      const [dx, dy] = [x - this.canvas.clientWidth / 2, y - this.canvas.clientHeight / 2];
      if (zoom === 1) this.whole();
      else [this.zoom, this.left, this.top] = [zoom, dx + ratio * (this.left - dx), dy + ratio * (this.top - dy)];
      this.draw();
    }
  }

  hfsae.onDrawn.push((panel) => {
    const section = panel.querySelector(".hf-map:not(.hf-ready)");
    if (section) {
      section.classList.add("hf-ready");
      shown = new LatentMap(section);
    }
    if (section || panel.querySelector("[data-hits]")) shown?.draw();
  });
  window.addEventListener("hfsae-theme", () => shown?.draw());
})();
