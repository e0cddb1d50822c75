// Softmax, sigmoid and their cross-entropies, in double precision: what the figure shows.
// Pure functions in a classic script, since a browser refuses modules on file://.
// z are logits, t is the temperature that divides them, y are labels (0 or 1 each).
(function (root) {
  "use strict";

  const sum = (values) => values.reduce((a, b) => a + b, 0);

  const softmax = (z, t = 1) => {
    const most = Math.max(...z);
    const powers = z.map((v) => Math.exp((v - most) / t));
    const total = sum(powers);
    return powers.map((v) => v / total);
  };

  const sigmoid = (v) => {
    const small = Math.exp(-Math.abs(v)); // never overflows
    return (v >= 0 ? 1 : small) / (1 + small);
  };

  // log(1 + exp(v)), exact on both sides.
  const softplus = (v) => Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v)));

  const softmaxLoss = (z, label, t = 1) => {
    const most = Math.max(...z);
    const total = sum(z.map((v) => Math.exp((v - most) / t)));
    return (most - z[label]) / t + Math.log(total);
  };

  const softmaxGradient = (z, label, t = 1) =>
    softmax(z, t).map((p, i) => (p - (i === label ? 1 : 0)) / t);

  // The sum over the units.
  const sigmoidLoss = (z, y, t = 1) => sum(z.map((v, i) => softplus((y[i] ? -v : v) / t)));

  const sigmoidGradient = (z, y, t = 1) =>
    z.map((v, i) => (sigmoid(v / t) - (y[i] ? 1 : 0)) / t);

  const api = {
    sum, softmax, sigmoid, softmaxLoss, softmaxGradient, sigmoidLoss, sigmoidGradient,
  };
  if (typeof module === "object" && module.exports) module.exports = api;
  else root.LogitsMath = api;
})(globalThis);
