// The updates that run, and those that ended a moment ago.

import { addressOf, bytes, element, now, setText, showPhase } from './tools.js';

const SHOWN = 6; // cards; more are counted
const KEPT = 60_000; // milliseconds that an ended update stays
const STEPS = ['waiting', 'downloading', 'downloadComplete', 'applying', 'applyComplete'];

export class Updates {
  constructor(devices) {
    this.devices = devices;
    this.list = document.getElementById('updates');
    this.ended = new Map(); // id of a device to when its update was seen to end
    this.cards = new Map();
  }

  /** A device's row is about to be replaced. */
  noticed(device, before) {
    if (device.update?.phase === 'running') this.ended.delete(device.id);
    else if (before?.update?.phase === 'running' && device.update) this.ended.set(device.id, now());
  }

  render() {
    for (const [id, since] of this.ended) if (now() - since > KEPT || !this.devices.has(id)) this.ended.delete(id);
    const counts = { running: 0, done: 0, failed: 0 };
    const running = [];
    for (const device of this.devices.values()) {
      if (!device.update) continue;
      counts[device.update.phase] += 1;
      if (device.update.phase === 'running') running.push(device);
    }
    const before = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    running.sort((a, b) => before(a.update.started ?? '', b.update.started ?? '') || before(a.id, b.id));
    const ended = [...this.ended.keys()].reverse().map((id) => this.devices.get(id));
    const shown = [...running, ...ended].slice(0, SHOWN);

    const cards = new Map(shown.map((device) => [device.id, this.cards.get(device.id) ?? newCard(device.id)]));
    for (const [id, card] of this.cards) if (!cards.has(id)) card.item.remove();
    this.cards = cards;
    let at = this.list.firstChild;
    for (const device of shown) {
      const card = cards.get(device.id);
      if (card.item !== at) this.list.insertBefore(card.item, at);
      else at = at.nextSibling;
      fillCard(card, device);
    }
    const say = (n, word) => (n > 0 ? [`${n.toLocaleString('en')} ${word}`] : []);
    const text = [...say(counts.running, 'running'), ...say(counts.done, 'complete'), ...say(counts.failed, 'failed')];
    setText(document.getElementById('updates-count'), text.join(', ') || 'none yet');
    const more = document.getElementById('updates-more');
    more.hidden = running.length <= SHOWN;
    setText(more, `and ${(running.length - SHOWN).toLocaleString('en')} more: choose “Updating” below`);
  }
}

/** A card for one device's update. */
export function newCard(id) {
  const item = document.getElementById('update-card').content.cloneNode(true).firstElementChild;
  const part = (selector) => item.querySelector(selector);
  const link = part('a');
  link.href = addressOf(id);
  link.textContent = id;
  const steps = part('.steps');
  for (const word of STEPS) steps.append(element('span', { className: 'step', title: word }));
  const label = element('span', {});
  steps.append(label);
  return {
    item,
    link,
    versions: part('.versions'),
    word: part('.word'),
    bar: part('progress'),
    steps: [...steps.querySelectorAll('.step')],
    label,
    bytes: part('.bytes'),
    error: part('.error'),
  };
}

/** Shows how the update of `device` stands. */
export function fillCard(card, device) {
  const { update } = device;
  card.item.dataset.phase = update.phase;
  const to = update.version ? `→ ${update.version}` : '';
  setText(card.versions, update.phase === 'done' ? (device.firmware ?? '') : `${device.firmware ?? ''} ${to}`.trim());
  card.word.className = 'word state';
  showPhase(card.word, update);

  const percent = update.phase === 'done' ? 100 : update.percent;
  card.bar.hidden = update.phase === 'failed';
  if (percent === undefined) card.bar.removeAttribute('value');
  else card.bar.value = percent;
  card.bar.setAttribute('aria-label', `Update of ${device.id}: ${update.word}`);

  const known = STEPS.findIndex((word) => word.toLowerCase() === update.word.toLowerCase());
  card.steps.forEach((step, at) => {
    step.hidden = known < 0;
    step.dataset.step = at < known || update.phase === 'done' ? 'past' : at === known ? 'now' : 'next';
  });
  const step = known < 0 ? [] : [`step ${known + 1} of ${STEPS.length}`];
  setText(card.label, [...step, ...(update.stage ? [update.stage] : [])].join(', '));
  const figures = [];
  if (update.percent !== undefined) figures.push(`${Math.floor(update.percent)} %`);
  if (update.bytesTotal) figures.push(`${bytes(update.bytesDone ?? 0)} of ${bytes(update.bytesTotal)}`);
  setText(card.bytes, figures.join(' · '));
  card.error.hidden = !update.error;
  setText(card.error, update.error ?? '');
}
