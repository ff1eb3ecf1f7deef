// Stacked bars over time, in SVG: crisp at each zoom, coloured by the style sheet in light and dark, read by the keyboard and
// a screen reader, which a canvas is not.
import { html, useEffect, useRef, useState } from "./html.js";
import { sat, whole } from "./format.js";
import { Name } from "./ui.js";

const TOP = 12;
const BOTTOM = 22;
const LEFT = 52;

/** The next round number above a value: 1, 2 or 5 times a power of ten. */
function roundUp(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

/**
 * `slots` is a list of {label, title, values: {series: number}}, in order; `series` a list of names, the largest first.
 * `inMsat` shows values as sats, else as numbers.
 */
export function Bars({ slots, series, caption, inMsat = true, height = 200 }) {
  const box = useRef();
  const [width, setWidth] = useState(640);
  const [at, setAt] = useState(null);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.max(240, Math.round(entry.contentRect.width))));
    observer.observe(box.current);
    return () => observer.disconnect();
  }, []);
  const show = inMsat ? sat : whole;
  const totals = slots.map((slot) => series.reduce((sum, name) => sum + (slot.values[name] ?? 0), 0));
  const top = roundUp(Math.max(...totals, 0));
  const step = (width - LEFT) / Math.max(1, slots.length);
  const gap = step > 8 ? Math.min(6, step * 0.25) : step > 3 ? 1 : 0;
  const toY = (value) => TOP + (height - TOP - BOTTOM) * (1 - value / top);
  const every = Math.ceil(slots.length / Math.max(2, Math.floor((width - LEFT) / 72)));
  const keys = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    setAt((was) => Math.min(slots.length - 1, Math.max(0, (was ?? (by > 0 ? -1 : slots.length)) + by)));
  };
  const point = (event) => {
    const x = event.clientX - event.currentTarget.getBoundingClientRect().left - LEFT;
    setAt(x < 0 ? null : Math.min(slots.length - 1, Math.floor(x / step)));
  };
  const chosen = at === null ? null : slots[Math.min(at, slots.length - 1)];
  const told = chosen ? `${chosen.title}: ${show(totals[at])}${inMsat ? " sat" : ""}` : "";
  return html`<figure class="chart" ref=${box}>
    <svg width=${width} height=${height} role="img" tabindex="0" aria-label="${caption}. Arrow keys read each bar." onKeyDown=${keys}
      onPointerMove=${point} onPointerLeave=${() => setAt(null)} onBlur=${() => setAt(null)}>
      ${[0, 0.5, 1].map((share) => html`<g key=${share} class="grid">
        <line x1=${LEFT} x2=${width} y1=${toY(top * share)} y2=${toY(top * share)} />
        <text x=${LEFT - 8} y=${toY(top * share) + 4} text-anchor="end">${short(inMsat ? (top * share) / 1000 : top * share)}</text>
      </g>`)}
      ${slots.map((slot, number) => {
        let base = 0;
        const x = LEFT + number * step + gap / 2;
        return html`<g key=${number} class=${number === at ? "at" : null}>
          ${number === at && html`<rect class="band" x=${LEFT + number * step} y=${TOP} width=${step} height=${height - TOP - BOTTOM} />`}
          ${series.map((name, order) => {
            const value = slot.values[name] ?? 0;
            if (value <= 0) return null;
            const y = toY(base + value);
            const tall = toY(base) - y;
            base += value;
            return html`<rect key=${name} class="series s${order % 12}" x=${x} y=${y} width=${Math.max(1, step - gap)} height=${Math.max(tall, 0.75)} />`;
          })}
          ${number % every === 0 && html`<text x=${Math.min(x, width - 36)} y=${height - 6}>${slot.label}</text>`}
        </g>`;
      })}
    </svg>
    <figcaption>
      <p class="told" aria-live="polite">${told || caption}</p>
      <ul class="legend">
        ${series.map((name, order) => {
          const value = chosen ? (chosen.values[name] ?? 0) : slots.reduce((sum, slot) => sum + (slot.values[name] ?? 0), 0);
          return html`<li key=${name}><i class="s${order % 12}"></i><${Name}>${name}<//> <span class="amount">${show(value)}</span></li>`;
        })}
      </ul>
    </figcaption>
  </figure>`;
}

function short(value) {
  if (value >= 1_000_000) return `${Number((value / 1_000_000).toPrecision(3))}M`;
  if (value >= 10_000) return `${Number((value / 1000).toPrecision(3))}k`;
  return whole(Number(value.toPrecision(3)));
}
