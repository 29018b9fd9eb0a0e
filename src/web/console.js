// The console: shows which databases change, and when. It uses the client library like any app, and
// knows nothing of the protocol.

import Client from './howler.js'

const KEPT_ROWS = 200 // of the list of changes: the page may stay open for weeks
const SECONDS = 60 // of the graph
const ANNOUNCE_EVERY = 15 // seconds: a screen reader announces the number of changes, not each
const STORAGE = 'couchdb-howler-console'
const KINDS = ['created', 'updated', 'deleted']

const $ = id => document.getElementById(id)
const demo = JSON.parse(document.querySelector('meta[name="howler-demo"]')?.content ?? 'null')

const client = new Client('.')
const still = matchMedia('(prefers-reduced-motion: reduce)')

/** The shown databases, by name. */
const databases = new Map()
/** Whether the console is shown instead of the login form. */
let inside = false
/** The user who is logged in or logging in. */
let user = ''
let ticks = 0
let figures = nothing()
/** Changes that are not in the list yet. */
let fresh = []
let drawing = false

function nothing () {
  return { total: 0, unannounced: 0, latest: '', connects: 0, resyncs: 0 }
}

// ----------------------------------------------------------------------------------------------
// helpers

function show (element, shown) {
  element.hidden = !shown
}

function element (name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties)
  made.append(...children)
  return made
}

function say (id, text) {
  $(id).textContent = text
  show($(id), text !== '')
}

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false })

function timeElement (date) {
  return element('time', { dateTime: date.toISOString(), textContent: clock.format(date) })
}

function badge (kind) {
  const made = element('span', { className: 'kind', textContent: kind })
  made.dataset.kind = kind
  return made
}

function ago (date) {
  const seconds = Math.max(0, Math.round((Date.now() - date) / 1000))
  if (seconds < 2) return 'just now'
  if (seconds < 60) return `${seconds} s ago`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`
  return clock.format(date)
}

/** Returns the text for an error. */
function explain (error) {
  switch (error?.name) {
    case 'NotAuthenticatedError': return 'User name or password is not correct.'
    case 'AccountLockedError': return 'This name is locked after too many wrong passwords. Try again in some minutes.'
    case 'LimitError': return 'Too many logins failed. Try again in some minutes.'
    case 'ServiceUnavailableError': return 'CouchDB cannot be reached at the moment. Try again soon.'
    default: return error?.message || 'Something went wrong.'
  }
}

// ------------------------------------------------------------------------------------------------
// graph

/** Counts changes per second, and draws the counts. */
const graph = {
  counts: new Map(),
  bars: [],
  top: 0,

  add (count) {
    const second = this.second()
    this.counts.set(second, (this.counts.get(second) ?? 0) + count)
  },

  clear () {
    this.counts.clear()
  },

  /** A clock that nobody can set, unlike the wall clock. */
  second () {
    return Math.floor(performance.now() / 1000)
  },

  /** Redraws. Once a second `moved` is set, and all bars move one place to the left. */
  draw (moved) {
    const now = this.second()
    for (const second of this.counts.keys()) if (second <= now - SECONDS) this.counts.delete(second)
    const svg = $('graph')
    const { clientWidth: width, clientHeight: height } = svg
    if (width === 0) return
    if (this.bars.length === 0 || this.width !== width || this.height !== height) this.lay(svg, width, height)
    const top = scale(Math.max(...this.counts.values(), 0))
    if (top !== this.top) this.label(top)
    const place = (this.width - this.gutter) / SECONDS
    this.bars.forEach((bar, at) => {
      const count = this.counts.get(now - SECONDS + 1 + at) ?? 0
      const size = count / top * (height - 12)
      bar.setAttribute('y', height - size)
      bar.setAttribute('height', size)
    })
    if (moved && !still.matches) {
      this.group.animate([{ transform: `translateX(${place}px)` }, { transform: 'none' }], { duration: 350, easing: 'ease-out' })
    }
    const before = this.counts.get(now - 1) ?? 0
    $('rate').textContent = before
    $('minute').textContent = [...this.counts.values()].reduce((sum, count) => sum + count, 0)
  },

  lay (svg, width, height) {
    Object.assign(this, { width, height, top: 0, gutter: 40 })
    svg.setAttribute('viewBox', `0 0 ${width} ${height}`)
    svg.replaceChildren()
    const make = (name, attributes, parent = svg) => {
      const made = document.createElementNS('http://www.w3.org/2000/svg', name)
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
      parent.append(made)
      return made
    }
    const levels = [0, 0.5, 1].map(part => height - part * (height - 12) - (part === 0 ? 0.5 : 0))
    for (const y of levels) make('line', { x1: this.gutter, x2: width, y1: y, y2: y })
    this.labels = levels.map((y, at) => make('text', { x: this.gutter - 8, y: y + (at === 0 ? -1 : 4), 'text-anchor': 'end' }))
    this.group = make('g', {})
    const place = (width - this.gutter) / SECONDS
    const gap = Math.min(3, place / 4)
    this.bars = Array.from({ length: SECONDS }, (_, at) => make('rect', {
      class: at === SECONDS - 1 ? 'now' : 'bar', x: this.gutter + at * place + gap / 2, width: place - gap, rx: Math.min(2, place / 4)
    }, this.group))
  },

  label (top) {
    this.top = top
    this.labels.forEach((label, at) => { label.textContent = top * at / 2 })
  }
}

/** Returns the smallest round number for a scale: 2, 4, 10, 20, 40, … */
function scale (most) {
  for (let power = 1; ; power *= 10) {
    for (const digit of [2, 4, 10]) if (digit * power >= Math.max(most, 2)) return digit * power
  }
}

// -----------------------------------------------------------------------------------------------
// memory

// State that a reload of the page restores. The library keeps the session itself.

function remember () {
  store({ user, databases: [...databases.keys()] })
}

function recall () {
  try {
    return JSON.parse(localStorage.getItem(STORAGE))
  } catch {
    return null
  }
}

function store (kept) {
  try {
    if (kept) localStorage.setItem(STORAGE, JSON.stringify(kept))
    else localStorage.removeItem(STORAGE)
  } catch {
    // The page may not store anything.
  }
}

// -------------------------------------------------------------------------------------- in, out,
// between

/** Shows the empty console. */
function enter () {
  if (inside) return
  inside = true
  show($('welcome'), false)
  show($('console'), true)
  show($('log-out'), true)
  say('user', user)
  say('log-in-error', '')
  $('password').value = ''
  draw()
}

/** Shows the login form, and removes everything of the session. */
function leave (problem = '') {
  inside = false
  user = ''
  client.unsubscribe([...databases.keys()]).catch(() => {})
  databases.clear()
  fresh = []
  figures = nothing()
  graph.clear()
  store(null)
  for (const id of ['rows', 'log']) $(id).replaceChildren()
  for (const id of ['user', 'state', 'problem', 'names-error', 'announcement']) say(id, '')
  show($('announcement'), true)
  for (const id of ['password', 'names']) $(id).value = ''
  draw()
  show($('console'), false)
  show($('log-out'), false)
  show($('welcome'), true)
  complain(problem)
  $(demo ? 'use-demo' : 'username').focus()
}

function complain (problem) {
  // Emptied first, so that the same text is announced again.
  say('log-in-error', '')
  say('log-in-error', problem)
  for (const id of ['username', 'password']) $(id).setAttribute('aria-invalid', problem !== '')
}

async function logIn (username, password, button) {
  const text = button.textContent
  complain('')
  button.textContent = 'Logging in…'
  button.setAttribute('aria-disabled', true)
  try {
    user = username
    await client.logIn(username, password)
    remember()
    return true
  } catch (error) {
    if (error.name !== 'AbortError') complain(explain(error))
    return false
  } finally {
    button.textContent = text
    button.removeAttribute('aria-disabled')
  }
}

function state (name, text) {
  $('state').dataset.state = name
  if ($('state').textContent !== text) say('state', text)
  $('link-state').textContent = text
  $('link-since').replaceChildren(timeElement(new Date()))
}

// --------------------------------------------------------------------------------------------
// databases

function add (names) {
  for (const name of names) {
    if (databases.has(name)) continue
    // The style sheet may make these no table, and then their implicit roles are lost.
    const count = cell('number', 0)
    const last = cell('last', element('span', { className: 'ago', textContent: 'subscribing…' }))
    const button = element('button', { type: 'button', className: 'quiet' }, 'Unsubscribe')
    button.append(element('span', { className: 'hidden', textContent: ` from ${name}` }))
    button.addEventListener('click', () => drop(name))
    const head = element('th', { scope: 'row', textContent: name })
    head.setAttribute('role', 'rowheader')
    const row = element('tr', {}, head, count, last, cell('', button))
    row.setAttribute('role', 'row')
    databases.set(name, { row, count, last, changes: 0, at: null, kind: '', drawn: 0 })
    $('rows').append(row)
  }
  remember()
  draw()
}

function cell (className, content) {
  const made = element('td', { className }, content)
  made.setAttribute('role', 'cell')
  return made
}

/** Unsubscribes. The focus moves on, since its place is removed. */
function drop (name) {
  forget(name)
  client.unsubscribe(name).catch(error => say('problem', explain(error)))
}

function forget (name) {
  const { row } = databases.get(name)
  const next = row.nextElementSibling ?? row.previousElementSibling
  const focused = row.contains(document.activeElement)
  databases.delete(name)
  row.remove()
  if (focused) (next?.querySelector('button') ?? $('names')).focus()
  remember()
  draw()
}

/** Marks databases as acknowledged by the server. */
function settle (names) {
  for (const name of names) {
    const database = databases.get(name)
    if (database && !database.at) database.last.querySelector('.ago').textContent = 'no change yet'
  }
}

async function subscribe (names) {
  say('names-error', '')
  const unknown = names.filter(name => !databases.has(name))
  try {
    const done = client.subscribe(unknown)
    add(unknown)
    await done
    settle(unknown)
  } catch (error) {
    // The event reports which of them were rejected.
    say('names-error', error.message)
  }
}

// ----------------------------------------------------------------------------------------------
// changes

function note (name, kind) {
  const at = new Date()
  const database = databases.get(name)
  if (database) Object.assign(database, { changes: database.changes + 1, at, kind })
  figures.total++
  figures.unannounced++
  figures.latest = name
  graph.add(1)
  list(at, name, kind)
}

/** Adds a line to the list at the next frame. The list holds the latest lines only. */
function list (at, name, kind) {
  fresh.push({ at, name, kind })
  if (fresh.length > 2 * KEPT_ROWS) fresh = fresh.slice(-KEPT_ROWS)
  if (drawing) return
  drawing = true
  requestAnimationFrame(() => {
    drawing = false
    draw()
  })
}

function draw () {
  const lines = fresh.slice(-KEPT_ROWS).reverse().map(({ at, name, kind }) => element('li', { className: 'new' },
    timeElement(at), element('span', { className: 'name', textContent: name }), badge(kind)))
  fresh = []
  $('log').prepend(...lines)
  while ($('log').childElementCount > KEPT_ROWS) $('log').lastElementChild.remove()
  show($('waiting'), $('log').childElementCount === 0)
  show($('table'), databases.size > 0)
  show($('none'), databases.size === 0)
  for (const database of databases.values()) {
    if (database.changes === database.drawn) continue
    database.drawn = database.changes
    database.count.textContent = database.changes.toLocaleString()
    database.count.toggleAttribute('data-one', database.changes === 1)
    database.last.replaceChildren(badge(database.kind), ' ', element('span', { className: 'ago', textContent: ago(database.at) }))
  }
  $('total').textContent = figures.total.toLocaleString()
  $('reconnects').textContent = Math.max(0, figures.connects - 1)
  $('resyncs').textContent = figures.resyncs
  graph.draw(false)
}

/** Once a second. */
function tick () {
  setTimeout(tick, 1000 - performance.now() % 1000)
  if (!inside) return
  graph.draw(true)
  for (const { last, at } of databases.values()) {
    const text = last.querySelector('.ago')
    if (at && text.textContent !== ago(at)) text.textContent = ago(at)
  }
  if (++ticks % ANNOUNCE_EVERY !== 0 || figures.unannounced === 0) return
  $('announcement').textContent = `${figures.unannounced} more changes, the latest of ${figures.latest}.`
  figures.unannounced = 0
}

// ------------------------------------------------------------------------------------------- the
// client

client.on('connect', () => {
  enter()
  figures.connects++
  say('problem', '')
})
client.on('ready', () => {
  state('ready', 'Connected')
  settle(databases.keys())
  draw()
})
client.on('disconnect', () => {
  if (inside) state('waiting', 'Reconnecting…')
})
client.on('change', (name, { kind }) => note(name, KINDS.includes(kind) ? kind : 'changed'))
client.on('resync', ({ reason } = {}) => {
  figures.resyncs++
  list(new Date(), reason || 'Changes may have been missed.', 'resync')
})
client.on('error', error => {
  if (databases.has(error.db)) forget(error.db)
  if (inside) {
    if (error.name === 'NotAuthenticatedError') leave('Your session has ended. Log in again.')
    else say('problem', error.db ? `${error.db}: ${error.message}` : explain(error))
  } else if ($('welcome').hidden && error.name !== 'ServiceUnavailableError') {
    leave(error.name === 'NotAuthenticatedError' ? 'Your session has ended. Log in again.' : explain(error))
  } else {
    complain(explain(error))
  }
})

// ------------------------------------------------------------------------------------------- the
// person

$('log-in').addEventListener('submit', async event => {
  event.preventDefault()
  const { value: username } = $('username')
  if (await logIn(username, $('password').value, event.target.querySelector('button'))) $('names').focus()
  else if (!inside) $('password').focus()
})

$('use-demo').addEventListener('click', async event => {
  if (!await logIn(demo.username, demo.password, event.target)) return
  subscribe(demo.databases)
  // The likely next step. A text field would open the keyboard of a phone.
  $('databases-title').focus()
})

$('log-out').addEventListener('click', () => {
  leave()
  client.logOut().catch(() => {})
})

$('subscribe').addEventListener('submit', event => {
  event.preventDefault()
  const names = $('names').value.split(/[\s,]+/).filter(name => name !== '')
  $('names').value = ''
  if (names.length > 0) subscribe([...new Set(names)])
  else say('names-error', 'Type the name of a database.')
  $('names').focus()
})

$('clear').addEventListener('click', () => {
  fresh = []
  $('log').replaceChildren()
  draw()
})

new ResizeObserver(() => graph.draw(false)).observe($('graph'))
tick()

show($('demo'), demo !== null)
if (document.cookie.split('; ').some(pair => pair.startsWith('couchdb-howler-session='))) {
  // The library logs in with it by itself.
  const kept = recall()
  user = kept?.user ?? ''
  show($('log-out'), true)
  state('waiting', 'Connecting…')
  if (kept?.databases?.length) {
    add(kept.databases)
    client.subscribe(kept.databases).catch(error => say('problem', error.message))
  }
} else {
  leave()
}
