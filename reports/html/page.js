// Opens the packed chart library, draws the charts in the reader's colours, keeps the what-if figures current, and
// prepares for print. It decides no number of the evidence: those are in the page before a script runs.
"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const twins = new Map(Object.entries(read("dark-twins")).map(([light, twin]) => [light.toUpperCase(), twin]));
  const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16)).join(",");
  const rgbaTwins = new Map([...twins].map(([light, twin]) => [channels(light), channels(twin)]));
  let printing = false;

  // ---- charts ----------------------------------------------------------------------------------------------------
  const recolourText = (text) =>
    text
      .replace(/#[0-9a-fA-F]{6}/g, (hex) => twins.get(hex.toUpperCase()) ?? hex)
      .replace(/rgba\((\d+,\d+,\d+),/g, (all, rgb) => (rgbaTwins.has(rgb) ? `rgba(${rgbaTwins.get(rgb)},` : all));
  const recolour = (value, key) => {
    if (typeof value === "string") return key === "bdata" ? value : recolourText(value);
    if (Array.isArray(value)) return value.map((item) => recolour(item, key));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, recolour(item, name)]));
    }
    return value;
  };
  const specification = (plot) => {
    const parsed = JSON.parse(document.getElementById(`figure-${plot.id}`).textContent);
    const chosen = dark.matches && !printing ? recolour(parsed, "") : parsed;
    const width = Math.floor(plot.getBoundingClientRect().width);
    return { data: chosen.data, layout: { ...chosen.layout, width } };
  };
  const draw = (plot) => {
    const { data, layout } = specification(plot);
    return window.Plotly.react(plot, data, layout, { displayModeBar: false, doubleClick: "reset" });
  };
  const plots = () => [...document.querySelectorAll(".plot")];

  const openLibrary = async () => {
    const packed = document.getElementById("chart-library");
    const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    packed.remove();
  };
  const breathe = () => new Promise((resolve) => setTimeout(resolve));
  const drawAll = async () => {
    if (plots().length === 0) return;
    try {
      await openLibrary();
    } catch {
      document.documentElement.dataset.charts = "unavailable";
      document.querySelectorAll(".chart details").forEach((details) => (details.open = true));
      return;
    }
    for (const plot of plots()) {
      await draw(plot);
      await breathe();
    }
    watchWidth();
  };
  const watchWidth = () => {
    const widths = new WeakMap(plots().map((plot) => [plot, Math.floor(plot.getBoundingClientRect().width)]));
    const observer = new ResizeObserver((entries) => {
      if (printing) return;
      for (const { target, contentRect } of entries) {
        const width = Math.floor(contentRect.width);
        if (width > 0 && widths.get(target) !== width) {
          widths.set(target, width);
          window.Plotly.relayout(target, { width });
        }
      }
    });
    plots().forEach((plot) => observer.observe(plot));
  };

  // ---- print -----------------------------------------------------------------------------------------------------
  const printWidth = 680;
  let opened = [];
  window.addEventListener("beforeprint", () => {
    printing = true;
    opened = [...document.querySelectorAll("details:not([open]):not([data-long])")];
    opened.forEach((details) => (details.open = true));
    if (!window.Plotly) return;
    for (const plot of plots()) {
      const { data, layout } = specification(plot);
      window.Plotly.react(plot, data, { ...layout, width: printWidth });
    }
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    opened.forEach((details) => (details.open = false));
    if (window.Plotly) plots().forEach(draw);
  });

  // ---- what if ---------------------------------------------------------------------------------------------------
  const whatIf = document.getElementById("what-if-data") ? read("what-if-data") : null;
  const inputs = () => [...document.querySelectorAll("[data-input]")];
  const short = (value, digits = 3) => {
    const size = Math.abs(value);
    if (size >= 1e9) return `${(value / 1e9).toPrecision(digits)} B`;
    if (size >= 1e6) return `${(value / 1e6).toPrecision(digits)} M`;
    if (size >= 100) return Math.round(value).toLocaleString("en-US");
    return size === 0 ? "0" : Number(value.toPrecision(digits)).toLocaleString("en-US", { maximumFractionDigits: 4 });
  };
  const signed = (text) => text.replace("-", "\u2212");
  const currency = (value) => {
    const size = Math.abs(value);
    const amount = size >= 0.1 && size < 100 ? size.toFixed(2) : short(size);
    const symbol = { USD: "$", EUR: "\u20ac", GBP: "\u00a3" }[whatIf.currency.toUpperCase()];
    const sign = value < 0 ? "\u2212" : "";
    return symbol ? sign + symbol + amount : `${sign}${amount} ${whatIf.currency}`;
  };
  const duration = (days) => {
    const long = Math.abs(days) >= 1 || days === 0;
    return signed(long ? `${short(days)} days` : `${short(days * 24)} hours`);
  };
  const state = () => {
    const values = {};
    for (const input of inputs()) {
      const number = Number(input.value);
      const given = input.dataset.scale === "log" ? 10 ** number : number;
      if (input.dataset.source === "yes" && Number.isFinite(given) && given >= 0) values[input.dataset.input] = given;
    }
    return values;
  };
  const roundHours = (value) => Number(value.toPrecision(2));
  const show = (name, text) =>
    document.querySelectorAll(`[data-out="${name}"]`).forEach((element) => (element.textContent = text));
  const savings = (factor, { hours, price, devices, power }) => {
    const saved = hours * (1 - 1 / factor);
    return { hours: saved, money: saved * price, days: saved / Math.max(devices, 1) / 24, energy: saved * power };
  };
  const update = () => {
    const values = state();
    values.hours = roundHours(values.hours);
    show("hours", short(values.hours));
    show("devices", short(values.devices));
    show("price", currency(values.price));
    for (const [end, factor] of Object.entries(whatIf.speedups)) {
      if (factor === null) continue;
      const saved = savings(factor, values);
      show(`hours-${end}`, signed(short(saved.hours)));
      show(`money-${end}`, currency(saved.money));
      show(`time-${end}`, duration(saved.days));
      show(`energy-${end}`, signed(short(saved.energy)));
      const needed = factor > 1 ? whatIf.spentHours / (1 - 1 / factor) : Infinity;
      show(`payback-${end}`, Number.isFinite(needed) ? short(needed) : "never");
    }
  };
  const follow = (changed) => {
    for (const input of inputs()) {
      if (input === changed || input.dataset.input !== changed.dataset.input) continue;
      input.value = changed.value;
    }
    update();
  };
  if (whatIf) {
    inputs().forEach((input) => input.addEventListener("input", () => follow(input)));
    update();
  }

  dark.addEventListener("change", () => window.Plotly && plots().forEach(draw));
  document.documentElement.dataset.ready = "no";
  drawAll().finally(() => (document.documentElement.dataset.ready = "yes"));
})();
