// Draws every figure in the page's own colours, and again when the scheme, the width or the medium changes.
(async () => {
  const figures = JSON.parse(document.getElementById('figures').textContent);
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const narrow = matchMedia('(max-width: 40rem)');
  const touch = matchMedia('(pointer: coarse)');
  const paper = {width: 680, height: 450, share: 0.72};  // of charts on paper: pixels, and the share of a screen's height
  const hidden = {};  // figure -> groups of curves that the reader has hidden
  const whole = new Set();  // figures of which the reader wants to see all
  let printing = false;

  await loadPlotly();
  addEventListener('beforeprint', () => { printing = true; drawAll(); });
  addEventListener('afterprint', () => { printing = false; drawAll(); });
  for (const query of [dark, touch]) query.addEventListener('change', drawAll);
  let width = innerWidth, waiting;
  addEventListener('resize', () => {
    if (innerWidth === width || printing) return;  // a phone's address bar comes and goes
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => { markWide(); drawAll(); }, 150);
  });
  document.querySelectorAll('.legend button').forEach(button => button.addEventListener('click', toggleCurve));
  document.querySelectorAll('button.all').forEach(button => button.addEventListener('click', toggleAll));
  markWide();
  for (const id of Object.keys(figures)) {
    draw(id);
    await new Promise(resume => setTimeout(resume));  // a page of many charts can be scrolled meanwhile
  }
  document.documentElement.dataset.drawn = dark.matches ? 'dark' : 'light';

  async function loadPlotly() {
    const packed = Uint8Array.from(atob(document.getElementById('plotly').textContent), each => each.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
    const script = document.createElement('script');
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  function drawAll() {
    for (const id of Object.keys(figures)) draw(id);
    document.documentElement.dataset.drawn = dark.matches ? 'dark' : 'light';
  }

  function draw(id) {
    const chart = document.getElementById(id);
    const {data, layout} = themed(figures[id]);
    for (const trace of data)
      if (hidden[id]?.has(trace.legendgroup ?? trace.name)) trace.visible = false;
    if (whole.has(id))
      for (const [name, axis] of Object.entries(layout))
        if (name.startsWith('yaxis')) delete axis.range;
    layout.dragmode = touch.matches ? false : 'zoom';  // a finger scrolls the page
    if (narrow.matches && !printing) {
      layout.font.size = 12;
      layout.margin.l = 48;
      layout.xaxis.nticks = layout.xaxis.type === 'date' ? 4 : mostTicks(layout.xaxis.range ?? [0, 1], chart.clientWidth);
    }
    if (printing) {
      layout.width = paper.width;
      layout.height = Math.min(paper.height, layout.height * paper.share);
      layout.font.size = 12;
      layout.xaxis.nticks = 8;
    }
    chart.style.minHeight = `${layout.height}px`;
    placeEnds(layout, printing ? paper.width : chart.clientWidth);
    const config = {
      responsive: true, displaylogo: false, showTips: false, showSendToCloud: false,  // what is said here stays here
      displayModeBar: touch.matches || printing ? false : 'hover',
      modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'zoomIn2d', 'zoomOut2d', 'resetScale2d']],
    };
    Plotly.react(chart, data, layout, config);
    spreadStages(chart, layout);
    for (const drawing of chart.querySelectorAll('svg.main-svg')) drawing.setAttribute('aria-hidden', 'true');
  }

  // As many ticks as fit beside each other on a phone, whose labels tell apart what lies in the range.
  function mostTicks([low, high], width) {
    const decimals = Math.max(0, Math.ceil(-Math.log10((high - low) / 5)));
    return Math.max(2, Math.min(5, Math.floor(0.75 * width / (8 * (decimals + 3)))));
  }

  // The figure with the values of the CSS variables that it names; on paper, those of paper.
  function themed(figure) {
    const root = printing ? document.body.appendChild(Object.assign(document.createElement('i'), {className: 'paper'})) : document.documentElement;
    const css = getComputedStyle(root);
    const replace = value => {
      if (typeof value === 'string') return value.startsWith('--') ? css.getPropertyValue(value).trim() : value;
      if (Array.isArray(value)) return value.map(replace);
      if (value && typeof value === 'object')
        return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, replace(entry)]));
      return value;
    };
    const result = replace(figure);
    if (printing) root.remove();
    return result;
  }

  function toggleCurve(event) {
    const button = event.currentTarget;
    const id = button.closest('.legend').dataset.chart;
    const groups = hidden[id] ??= new Set();
    const group = button.dataset.group;
    if (!groups.delete(group)) groups.add(group);
    button.setAttribute('aria-pressed', String(!groups.has(group)));
    draw(id);
  }

  function toggleAll(event) {
    const button = event.currentTarget;
    const id = button.dataset.chart;
    if (!whole.delete(id)) whole.add(id);
    button.setAttribute('aria-pressed', String(whole.has(id)));
    draw(id);
  }

  // Says of a table that it is wider than the screen.
  function markWide() {
    for (const box of document.querySelectorAll('.scroll'))
      box.classList.toggle('wider', box.scrollWidth > box.clientWidth + 1);
  }

  // Puts names of stages that lie on each other one above the other; for which there is no room are left to the tables.
  function spreadStages(chart, layout) {
    const rows = [];
    const right = chart.getBoundingClientRect().right;
    const names = layout.annotations?.filter(each => each.name === 'stage') ?? [];
    if (!names.length) return;
    const boxes = layout.annotations.map((_, index) => chart.querySelector(`.annotation[data-index="${index}"]`)?.getBoundingClientRect());
    let moved = false;
    for (const [index, each] of layout.annotations.entries()) {
      if (each.name !== 'stage' || !boxes[index]?.width) continue;
      let {left, width} = boxes[index];
      if (left + width > right) {
        each.xanchor = 'right';
        left -= width;
        moved = true;
      }
      let row = 0;
      while (row < rows.length && rows[row] > left) row++;
      each.visible = row < 5 && left >= chart.getBoundingClientRect().left;
      moved ||= row > 0 || !each.visible;
      if (!each.visible) continue;
      rows[row] = left + width + 8;
      each.yshift = 15 * row;
    }
    if (!moved) return;
    layout.margin.t += 15 * Math.max(0, rows.length - 1);
    Plotly.relayout(chart, {annotations: layout.annotations, 'margin.t': layout.margin.t});
  }

  // Finds a place for each run's name near its mark: on no other name, no mark and not on the line of the front.
  function placeEnds(layout, width) {
    const ends = layout.annotations?.filter(each => each.name === 'end') ?? [];
    if (!ends.length) return;
    const {l, r, t, b} = layout.margin;
    const area = {left: l + 12, right: width - r, top: t, bottom: layout.height - b - 8};
    const scale = ([low, high], value, from, to) => from + (value - low) / (high - low) * (to - from);
    const pen = document.createElement('canvas').getContext('2d');
    pen.font = `${ends[0].font.size}px ${layout.font.family}`;
    const points = ends.map(end => ({
      x: scale(layout.xaxis.range, end.x, area.left, area.right),
      y: scale(layout.yaxis.range, end.y, area.bottom, area.top),
    }));
    const taken = points.map(({x, y}) => box(x, y, 18, 18));
    const front = points.filter(a => !points.some(b => b.x <= a.x && b.y >= a.y && (b.x < a.x || b.y > a.y)));
    front.sort((a, b) => a.x - b.x);
    for (const [index, end] of ends.entries()) {
      Object.assign(end, {visible: false, xanchor: 'center', yanchor: 'middle'});
      const name = new DOMParser().parseFromString(end.text, 'text/html').body.textContent;
      for (const text of [name, `${name.slice(0, 6)}…${name.slice(-7)}`]) {
        const size = {width: pen.measureText(text).width + 8, height: 18};
        const place = findPlace(points[index], size, area, taken, front);
        if (!place) continue;
        Object.assign(end, place.shift, {visible: true});
        if (text !== name) end.text = escaped(text);
        taken.push(place.box);
        break;
      }
    }
  }

  function findPlace(point, {width, height}, area, taken, front) {
    for (const far of [0, 14, 30, 48, 70, 95, 125])
      for (const [right, down] of [[1, -0.9], [-1, -0.9], [1, 0.9], [-1, 0.9], [1, 0], [-1, 0], [0, -1], [0, 1]]) {
        const dx = right * (width / 2 + 12 + far * (down ? 0.4 : 1)), dy = down * (height / 2 + 10 + far);
        const found = box(point.x + dx, point.y + dy, width, height);
        const inside = found.left >= area.left - 8 && found.right <= area.right && found.top >= area.top && found.bottom <= area.bottom;
        if (!inside || taken.some(other => overlap(found, other))) continue;
        if (front.some((end, index) => index && crosses(front[index - 1], end, found))) continue;
        const shift = far ? {showarrow: true, arrowhead: 0, arrowwidth: 1, arrowcolor: '#888', ax: dx, ay: dy}
          : {showarrow: false, xshift: dx, yshift: -dy};
        return {box: found, shift};
      }
    return null;
  }

  function box(x, y, width, height) {
    return {left: x - width / 2, right: x + width / 2, top: y - height / 2, bottom: y + height / 2};
  }

  function overlap(a, b) {
    return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  }

  function crosses(from, to, area) {
    for (let step = 0; step <= 100; step++) {
      const x = from.x + (to.x - from.x) * step / 100, y = from.y + (to.y - from.y) * step / 100;
      if (x > area.left && x < area.right && y > area.top && y < area.bottom) return true;
    }
    return false;
  }

  // Plotly reads some HTML in labels.
  function escaped(text) {
    return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
  }
})();
