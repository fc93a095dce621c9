// The chosen device: its connection, its last update, its twin with what changed, its patches and packets.

import { ago, announce, byId, chosen, element, fault, setText, showConnection, showPhase, span } from './tools.js';
import { TwinView } from './twin.js';
import { fillCard, newCard } from './updates.js';

const PACE = 250; // shortest time between two questions, milliseconds
const REST = 3000; // packets that change nothing else are asked for this often

export class Detail {
  constructor(devices) {
    this.devices = devices;
    this.section = byId('detail');
    this.id = '';
    this.desired = new TwinView(byId('desired'));
    this.reported = new TwinView(byId('reported'));
    this.tags = new TwinView(byId('tags'));
    byId('close').addEventListener('click', () => this.close());
    byId('drop').addEventListener('click', () => fault(`/devices/${encodeURIComponent(this.id)}/drop`));
    setInterval(() => this.ask(), REST);
  }

  /** Shows the device that the address names, or none. */
  follow() {
    const id = chosen();
    if (id === this.id) return;
    this.id = id;
    for (const view of [this.desired, this.reported, this.tags]) view.clear();
    this.card = undefined;
    this.told = undefined;
    for (const list of ['stages', 'patches', 'wire', 'detail-update'].map(byId)) {
      list.replaceChildren();
      delete list.shown;
    }
    this.section.hidden = id === '';
    document.body.classList.toggle('choosing', id !== '');
    if (id === '') return;
    setText(byId('detail-title'), id);
    setText(byId('detail-facts'), '');
    byId('detail-missing').hidden = true;
    byId('detail-body').hidden = true;
    this.renderHead();
    byId('detail-title').focus();
    this.ask();
  }

  close() {
    if (this.id === '') return;
    const left = this.id;
    history.pushState(null, '', location.pathname);
    this.follow();
    const row = [...document.querySelectorAll('#devices tbody tr')].find((row) => row.dataset.id === left);
    (row?.querySelector('a') ?? byId('filter')).focus();
    row?.querySelector('a').removeAttribute('aria-current');
  }

  /** These devices changed; `all` when nothing is known of the time before. */
  changed(ids, all) {
    if (this.id !== '' && (all || ids.has(this.id))) this.ask();
  }

  /** Asks for the details: one question at a time, and the last state is always asked for. */
  async ask() {
    if (this.id === '' || document.hidden) return;
    if (this.asking) {
      this.again = true;
      return;
    }
    this.asking = true;
    const { id } = this;
    const began = Date.now();
    const answer = await fetchDetail(id);
    setTimeout(() => {
      this.asking = false;
      if (this.again || id !== this.id) {
        this.again = false;
        this.ask();
      }
    }, Math.max(0, began + PACE - Date.now()));
    if (answer === undefined || id !== this.id) return;
    if (answer === null) this.missing('This device is not registered.');
    else this.render(answer);
  }

  missing(text) {
    byId('detail-missing').hidden = false;
    byId('detail-body').hidden = true;
    setText(byId('detail-missing'), text);
    setText(byId('detail-facts'), '');
  }

  /** What the list knows: drawn at once, without a question. */
  renderHead() {
    if (this.id === '') return;
    const device = this.devices.get(this.id);
    byId('drop').disabled = !device?.connected;
    const state = byId('detail-state');
    state.hidden = !device;
    if (!device) return;
    state.className = 'state';
    showConnection(state, device);
    const update = device.update;
    const told = `${device.id} ${state.textContent.slice(2)}${update ? `, update ${update.word}` : ''}`;
    if (this.told !== undefined && this.told !== told) announce(told);
    this.told = told;
    if (!update) {
      this.card = undefined;
      setText(byId('detail-update'), 'It has reported no update.');
      return;
    }
    if (!this.card) {
      this.card = newCard(device.id);
      this.card.link.remove();
      this.card.item = element('div', { className: 'card' }, ...this.card.item.childNodes);
      byId('detail-update').replaceChildren(this.card.item);
    }
    fillCard(this.card, device);
  }

  render(detail) {
    byId('detail-missing').hidden = true;
    byId('detail-body').hidden = false;
    const { summary, twin } = detail;
    const times = (n, word) => `${n} ${word}${n === 1 ? '' : 's'}`;
    const facts = [
      summary.firmware ? `runs ${summary.firmware}` : 'has reported no version',
      `authentication ${detail.authentication}`,
      times(detail.connections, 'connection'),
      times(detail.refusals, 'refusal'),
    ];
    if (summary.since) facts.push(`${summary.connected ? 'connected' : 'disconnected'} ${ago(summary.since)}`);
    setText(byId('detail-facts'), facts.join(' · '));
    this.renderStages(detail.stages, summary.update);
    this.desired.show(twin.desired);
    this.reported.show(twin.reported);
    setText(byId('desired-version'), `version ${twin.desired.$version}`);
    setText(byId('reported-version'), `version ${twin.reported.$version}`);
    this.tags.show(twin.tags);
    byId('tags-part').hidden = Object.keys(twin.tags).length === 0 && this.tags.marks.size === 0;
    lines(
      byId('patches'),
      detail.patches.map((patch) => [time(patch.time), `version ${patch.version}`, JSON.stringify(patch.patch)]),
      'It has reported nothing since the start of the emulator.',
    );
    const wire = detail.wire.map((text) => {
      const [, stamp, way, packet] = /^(\S+) (->|<-|--) (.*)$/.exec(text) ?? ['', '', '', '', text];
      return [time(stamp), { '->': '→ hub', '<-': '← hub', '--': 'note' }[way] ?? '', packet];
    });
    lines(byId('wire'), wire.reverse(), 'None lately.');
  }

  renderStages(stages, update) {
    const list = byId('stages');
    const items = stages.map(({ word, time: at }, index) => {
      const next = stages[index + 1];
      const took = next ? ` · ${precise(Date.parse(next.time) - Date.parse(at))}` : '';
      const label = element('span', { className: 'state' });
      if (next) setText(label, `✓ ${word}`);
      else showPhase(label, update?.word === word ? update : { word, phase: 'running' });
      return element('li', { title: at }, label, element('span', { className: 'muted' }, time(at) + took));
    });
    const text = items.map((item) => item.textContent).join('\n');
    if (list.shown === text) return;
    list.shown = text;
    list.replaceChildren(...items);
  }
}

/** The details of a device: null when it is not registered, undefined when the emulator is away (it is asked again). */
async function fetchDetail(id) {
  try {
    const answer = await fetch(`/devices/${encodeURIComponent(id)}`);
    return answer.ok ? await answer.json() : null;
  } catch {
    return undefined;
  }
}

/** A span as exact as stages are short. */
const precise = (milliseconds) => (milliseconds < 10_000 ? `${(milliseconds / 1000).toFixed(1)} s` : span(milliseconds));

/** The time of day of a stamp, here. */
function time(stamp) {
  const date = new Date(stamp);
  return Number.isNaN(date.valueOf()) ? '' : date.toLocaleTimeString('en-GB');
}

/** Fills a list with lines of three parts, unless it shows them already. */
function lines(list, rows, empty) {
  const text = JSON.stringify(rows);
  if (list.shown === text) return;
  list.shown = text;
  const classes = ['muted', 'muted way', 'payload'];
  const items = rows.map((row) =>
    element('li', {}, ...row.map((part, at) => element('span', { className: classes[at] }, part))),
  );
  if (items.length === 0) items.push(element('li', { className: 'muted' }, empty));
  list.replaceChildren(...items);
}
