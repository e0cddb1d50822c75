// <logits-playground labels="cat,dog,owl" logits="2,1,-1" true-class="0" lang="en">
//
// Three logits to pull at, and what softmax and sigmoid make of them: probabilities, loss,
// gradient. What stands inside of the element is shown where scripts do not run.
//
// For tests. These names stay:
//   input[name=z0|z1|z2|t]      the sliders, role "slider", named by the class / the temperature
//   input[name=ID-true]         radio buttons: the true class of the softmax
//   input[name=y0|y1|y2]        check boxes: the true classes of the sigmoid
//   button.lp-shift, .lp-reset  add 5 to all logits (where one is above 5: take 5 off), start again
//   button.lp-step              one in each panel, with data-kind: every logit moves by -2 times its
//                               gradient there, rounded to what the slider can show
//   .lp-v, .lp-g                a probability, a gradient; each has data-kind (softmax, sigmoid),
//                               data-index and data-value, the number unrounded
//   .lp-sum, .lp-loss           one of each in a panel, with data-kind and data-value
//   .lp-odds                    the odds of the two highest classes, with data-value
//   .lp-status                  role "status": all of it as a sentence, 150 ms later
(() => {
  "use strict";
  const math = globalThis.LogitsMath;

  const TEXTS = {
    en: {
      figure: "Try it: logits, probabilities, loss and gradient",
      temperature: "temperature",
      shift: "Add 5 to all",
      unshift: "Take 5 off all",
      reset: "Start again",
      step: "Train a step",
      softmax: "Softmax: exactly one is true",
      sigmoid: "Sigmoid: each by itself",
      true: "true",
      gradient: "gradient",
      up: "training raises this logit",
      down: "training lowers this logit",
      sum: "sum",
      loss: "loss",
      odds: "{0} against {1}: odds of e{2} = {3} to 1",
      status:
        "Softmax sums to {0}, loss {1}. Sigmoids sum to {2}, loss {3}.",
      legend:
        "Thick bars are probabilities, thin ones the gradient of the loss by each logit: "
        + "probability minus label, over the temperature. Training moves the logit against "
        + "it, ▲ up or ▼ down. The loss of the sigmoids is the sum of the three.",
    },
    zh: {
      figure: "动手试试：logits、概率、损失与梯度",
      temperature: "温度",
      shift: "全部加 5",
      unshift: "全部减 5",
      reset: "重来",
      step: "训练一步",
      softmax: "Softmax：恰有一类为真",
      sigmoid: "Sigmoid：各类互不相干",
      true: "真",
      gradient: "梯度",
      up: "训练会抬高这个 logit",
      down: "训练会压低这个 logit",
      sum: "总和",
      loss: "损失",
      odds: "{0} 对 {1}：几率为 e{2} = {3} 比 1",
      status: "Softmax 的总和为 {0}，损失 {1}。Sigmoid 的总和为 {2}，损失 {3}。",
      legend:
        "粗条是概率，细条是损失对每个 logit 的梯度，即（概率 − 标签）÷ 温度。"
        + "训练让 logit 朝梯度的反方向走：▲ 升，▼ 降。Sigmoid 的损失是三项之和。",
    },
  };

  const SHIFT = 5;
  const RATE = 2;
  const LIMIT = 10;
  const MINUS = "\u2212";
  const shown = (value, places = 3) => value.toFixed(places).replace(/^-(?=[0.]*$)/, "").replace("-", MINUS);
  const signed = (value) => (value >= 0.0005 ? "+" : "") + shown(value);
  const filled = (text, ...values) => text.replace(/\{(\d)\}/g, (_, i) => values[i]);

  const made = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const write = (node, value, text) => {
    node.dataset.value = value;
    node.textContent = text;
  };

  class LogitsPlayground extends HTMLElement {
    connectedCallback() {
      if (this.dataset.ready) return;
      this.dataset.ready = "1";
      const list = (name, otherwise) => (this.getAttribute(name) ?? otherwise).split(",").map((x) => x.trim());
      this.text = TEXTS[(this.closest("[lang]")?.lang ?? "en").slice(0, 2)] ?? TEXTS.en;
      this.id ||= `lp${document.querySelectorAll("logits-playground[id]").length}`;
      this.labels = list("labels", "a,b,c");
      this.start = list("logits", this.labels.map(() => 0).join()).map(Number);
      this.first = Number(this.getAttribute("true-class") ?? 0);
      this.parts = { softmax: [], sigmoid: [] };
      this.totals = {};
      this.setAttribute("role", "group");
      this.setAttribute("aria-label", this.text.figure);

      this.odds = made("p", { class: "lp-odds" });
      this.status = made("p", { class: "lp-status", role: "status" });
      this.replaceChildren(
        this.controls(),
        this.odds,
        made("div", { class: "lp-panels" }, this.panel("softmax"), this.panel("sigmoid")),
        made("p", { class: "lp-legend" }, this.text.legend),
        this.status,
      );
      this.reset();
    }

    controls() {
      const slider = (name, label, least, most, kind) => {
        const id = `${this.id}-${name}`;
        const input = made("input", { type: "range", id, name, min: least, max: most, step: 0.1 });
        const output = made("output", { for: id, class: "lp-z" });
        input.addEventListener("input", () => this.paint());
        return {
          input,
          output,
          row: made("div", { class: `lp-slider lp-slider-${kind}` }, made("label", { for: id }, label), input, output),
        };
      };
      this.sliders = this.labels.map((label, i) => slider(`z${i}`, label, -LIMIT, LIMIT, "logit"));
      this.heat = slider("t", this.text.temperature, 0.2, 5, "temperature");
      this.shift = made("button", { type: "button", class: "lp-shift" });
      this.shift.addEventListener("click", () => {
        const by = this.canRise() ? SHIFT : -SHIFT;
        for (const { input } of this.sliders) input.value = Number(input.value) + by;
        this.paint();
      });
      const again = made("button", { type: "button", class: "lp-reset" }, this.text.reset);
      again.addEventListener("click", () => this.reset());
      return made(
        "div",
        { class: "lp-controls" },
        ...this.sliders.map(({ row }) => row),
        this.heat.row,
        made("div", { class: "lp-buttons" }, this.shift, again),
      );
    }

    // A group of rows, one for each class: is it true, how probable, where does training push.
    panel(kind) {
      const title = made("span", { class: "lp-title", id: `${this.id}-${kind}` }, this.text[kind]);
      const rows = this.labels.map((label, i) => {
        const id = `${this.id}-${kind}${i}`;
        const box = made("input", kind === "softmax"
          ? { type: "radio", id, name: `${this.id}-true`, value: i }
          : { type: "checkbox", id, name: `y${i}` });
        box.setAttribute("aria-label", `${label}: ${this.text.true}`);
        box.addEventListener("change", () => this.paint());
        const known = { "data-kind": kind, "data-index": i };
        const part = {
          box,
          bar: made("i"),
          value: made("span", { class: "lp-v", ...known }),
          push: made("i"),
          gradient: made("span", { class: "lp-g", ...known }),
          arrow: made("span", { class: "lp-arrow" }),
        };
        this.parts[kind].push(part);
        return made(
          "div",
          { class: "lp-row", role: "group", "aria-label": label },
          made("label", { class: "lp-name", for: id }, box, made("span", {}, label)),
          made("span", { class: "lp-meter", "aria-hidden": "true" }, part.bar),
          part.value,
          made("span", { class: "lp-small" }, this.text.gradient),
          made("span", { class: "lp-push", "aria-hidden": "true" }, part.push),
          made("span", { class: "lp-small lp-gradient" }, part.gradient, part.arrow),
        );
      });
      const known = { "data-kind": kind };
      const total = { sum: made("b", { class: "lp-sum", ...known }), loss: made("b", { class: "lp-loss", ...known }) };
      this.totals[kind] = total;
      const step = made("button", { type: "button", class: "lp-step", ...known }, this.text.step);
      step.addEventListener("click", () => this.train(kind));
      return made(
        "div",
        { class: `lp-panel lp-${kind}`, role: "group", "aria-labelledby": title.id },
        title,
        ...rows,
        made("p", { class: "lp-totals" },
          made("span", {}, `${this.text.sum} `, total.sum), made("span", {}, `${this.text.loss} `, total.loss), step),
      );
    }

    canRise() {
      return this.sliders.every(({ input }) => Number(input.value) + SHIFT <= LIMIT);
    }

    train(kind) {
      this.sliders.forEach(({ input }, i) => {
        const gradient = Number(this.parts[kind][i].gradient.dataset.value);
        input.value = Number(input.value) - RATE * gradient;
      });
      this.paint();
    }

    reset() {
      this.sliders.forEach(({ input }, i) => { input.value = this.start[i]; });
      this.heat.input.value = 1;
      for (const kind of ["softmax", "sigmoid"]) {
        this.parts[kind].forEach(({ box }, i) => { box.checked = i === this.first; });
      }
      this.paint();
    }

    paint() {
      const z = this.sliders.map(({ input }) => Number(input.value));
      const t = Number(this.heat.input.value);
      for (const { input, output } of [...this.sliders, this.heat]) {
        write(output, input.value, shown(Number(input.value), 1));
      }
      const rises = this.canRise();
      const falls = z.every((v) => v - SHIFT >= -LIMIT);
      this.shift.textContent = rises || !falls ? this.text.shift : this.text.unshift;
      this.shift.disabled = !rises && !falls;

      const label = this.parts.softmax.findIndex(({ box }) => box.checked);
      const labels = this.parts.sigmoid.map(({ box }) => box.checked);
      const losses = {
        softmax: math.softmaxLoss(z, label, t),
        sigmoid: math.sigmoidLoss(z, labels, t),
      };
      const sums = {
        softmax: this.show("softmax", math.softmax(z, t), math.softmaxGradient(z, label, t)),
        sigmoid: this.show("sigmoid", z.map((v) => math.sigmoid(v / t)), math.sigmoidGradient(z, labels, t)),
      };
      for (const kind of ["softmax", "sigmoid"]) {
        write(this.totals[kind].sum, sums[kind], shown(sums[kind]));
        write(this.totals[kind].loss, losses[kind], shown(losses[kind]));
      }

      const [one, other] = z.map((_, i) => i).sort((a, b) => z[b] - z[a]);
      const gap = (z[one] - z[other]) / t;
      const odds = Math.exp(gap);
      const told = odds < 1e6 ? shown(odds, odds < 100 ? 2 : 0) : odds.toExponential(1);
      const [before, after] = filled(this.text.odds, this.labels[one], this.labels[other], "^", told).split("^");
      write(this.odds, odds, before);
      this.odds.append(made("sup", {}, shown(gap, 1)), after);

      // A screen reader should hear the end of a move, not all of it.
      clearTimeout(this.timer);
      this.timer = setTimeout(() => {
        const { softmax, sigmoid } = sums;
        this.status.textContent = filled(
          this.text.status, shown(softmax), shown(losses.softmax), shown(sigmoid), shown(losses.sigmoid));
      }, 150);
    }

    show(kind, chances, gradients) {
      const most = Math.max(1, ...gradients.map(Math.abs));
      this.parts[kind].forEach((part, i) => {
        const gradient = gradients[i];
        write(part.value, chances[i], shown(chances[i]));
        part.bar.style.inlineSize = `${100 * chances[i]}%`;

        write(part.gradient, gradient, signed(gradient));
        const share = (50 * Math.abs(gradient)) / most;
        part.push.style.inlineSize = `${share}%`;
        part.push.style.insetInlineStart = `${gradient < 0 ? 50 - share : 50}%`;
        const way = Math.abs(gradient) < 0.0005 ? "" : gradient < 0 ? "up" : "down";
        part.push.className = `lp-${way || "still"}`;
        part.arrow.textContent = { up: "▲", down: "▼" }[way] ?? "";
        if (way) {
          part.arrow.setAttribute("role", "img");
          part.arrow.setAttribute("aria-label", this.text[way]);
        } else {
          part.arrow.removeAttribute("role");
          part.arrow.removeAttribute("aria-label");
        }
      });
      return math.sum(chances);
    }
  }

  if (!customElements.get("logits-playground")) {
    customElements.define("logits-playground", LogitsPlayground);
  }
})();
