'use strict'
// Drives the console in headless Chromium for a test, with mouse and keyboard, and reports the
// content of the page.
//
//   node console.js FOLDER          FOLDER holds the browser's profile and screenshots
//
// Reads commands from stdin and writes events to stdout, each a line of JSON. Every command names
// its page in `as`, every event in `of`, and every command has an event as its reply:
//
//   {"do":"open","as":"a","url":"http://…","width":1280,"height":800,"scheme":"dark"}      {"of":"a","event":"opened"}
//   {"do":"fill","as":"a","selector":"#names","value":"db1"}     {"do":"click","as":"a","selector":"#clear"}
//   {"do":"press","as":"a","keys":["Tab","Enter"]}               {"do":"type","as":"a","text":"db1"}
//   {"do":"reload","as":"a"}    {"do":"picture","as":"a","name":"desktop-dark"}
//                                                                 {"of":"a","event":"done"}
//   {"do":"look","as":"a"}      {"of":"a","event":"seen","text":"…","console":true,"rows":[…],"bars":[…], …}
//   {"do":"check","as":"a"}     {"of":"a","event":"checked","violations":[…]}              by axe-core
//   {"do":"proxy","as":"p","to":3000,"prefix":"/howler-here"}    {"of":"p","event":"proxied","url":"http://…"}
//   {"do":"end"}                {"of":"browser","event":"ended"}

const fs = require('node:fs')
const http = require('node:http')
const net = require('node:net')
const path = require('node:path')
const readline = require('node:readline')

const folder = process.argv[2]
if (folder) process.env.TMPDIR = folder
const CHROMIUM = process.env.CHROMIUM || '/usr/bin/chromium'

function emit (of, event, more) {
  process.stdout.write(JSON.stringify({ of, event, ...more }) + '\n')
}

function fail (problem) {
  console.error(`tests/clients/console.js: ${problem}`)
  process.exit(1)
}

if (!fs.existsSync(CHROMIUM)) fail(`${CHROMIUM} is missing: install Debian's package chromium, or set CHROMIUM`)

function library (name) {
  try {
    return require(name)
  } catch (error) {
    fail(`${name} is missing (${error.code}): run tests/clients/install.sh`)
  }
}

const { chromium } = library('playwright-core')
const axe = library('axe-core').source

// Runs in the page and returns what a user sees.
function look () {
  const $ = selector => document.querySelector(selector)
  const shown = selector => $(selector) !== null && $(selector).checkVisibility()
  const text = selector => shown(selector) ? $(selector).innerText.trim() : ''
  const number = selector => Number(text(selector).replace(/\D/g, '') || NaN)
  const focus = document.activeElement
  return {
    text: document.body.innerText,
    // Includes hidden text.
    content: document.body.textContent,
    console: shown('#console'),
    welcome: shown('#welcome'),
    demo: shown('#use-demo'),
    state: text('#state'),
    user: text('#user'),
    error: text('#log-in-error'),
    names_error: text('#names-error'),
    problem: text('#problem'),
    rows: [...document.querySelectorAll('#rows tr')].map(row => ({
      name: row.querySelector('th').textContent,
      changes: Number(row.querySelector('.number').textContent.replace(/\D/g, '')),
      kind: row.querySelector('.kind')?.textContent ?? null,
      asked: row.textContent.includes('subscribing…')
    })),
    log: [...document.querySelectorAll('#log li')].map(line => ({
      time: line.querySelector('time').textContent,
      name: line.querySelector('.name').textContent,
      kind: line.querySelector('.kind').textContent
    })),
    total: number('#total'),
    minute: number('#minute'),
    reconnects: number('#reconnects'),
    bars: [...document.querySelectorAll('#graph rect')].map(bar => Number(bar.getAttribute('height'))),
    focus: focus.id || focus.textContent.trim(),
    scrolled: $('#scroll').scrollTop,
    // Width of the content beyond the screen of a phone.
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    // Elements that exceed their card.
    outside: [...document.querySelectorAll('.card *')].filter(element => element.checkVisibility())
      .filter(element => !element.closest('svg, .hidden'))
      .filter(element => element.getBoundingClientRect().right > element.closest('.card').getBoundingClientRect().right - 8)
      .map(element => element.outerHTML),
    small: [...document.querySelectorAll('button, input')].filter(element => element.checkVisibility())
      .filter(element => element.getBoundingClientRect().height < 44).map(element => element.id || element.textContent),
    announcement: $('#announcement').textContent
  }
}

// Starts a reverse proxy that serves the server below a path.
function proxy (to, prefix) {
  const forward = (request, options) => http.request({
    host: '127.0.0.1', port: to, method: request.method, headers: request.headers, path: request.url.slice(prefix.length), ...options
  })
  const inside = (request, refuse) => request.url.startsWith(prefix + '/') || refuse()
  const server = http.createServer((request, response) => {
    if (!inside(request, () => response.writeHead(404).end() && false)) return
    request.pipe(forward(request)).on('response', answer => {
      response.writeHead(answer.statusCode, answer.headers)
      answer.pipe(response)
    })
  })
  server.on('upgrade', (request, socket, head) => {
    if (!inside(request, () => socket.destroy() && false)) return
    const lines = Object.entries(request.headers).map(([name, value]) => `${name}: ${value}\r\n`)
    const upstream = net.connect(to, '127.0.0.1', () => {
      upstream.write(`GET ${request.url.slice(prefix.length)} HTTP/1.1\r\n${lines.join('')}\r\n`)
      upstream.write(head)
      socket.pipe(upstream).pipe(socket)
    })
    for (const end of [socket, upstream]) end.on('error', () => {})
  })
  return new Promise(resolve => server.listen(0, '127.0.0.1', () => {
    resolve(`http://localhost:${server.address().port}${prefix}/`)
  }))
}

async function main () {
  const browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: [
      '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync'
    ]
  }).catch(error => fail(`Chromium does not start: ${error.message}`))
  const pages = new Map()
  const page = as => pages.get(as).page

  const commands = {
    async open ({ as, url, width = 1280, height = 860, scheme = 'light', motion = 'no-preference' }) {
      const context = await browser.newContext({
        viewport: { width, height }, colorScheme: scheme, reducedMotion: motion, isMobile: width < 600, hasTouch: width < 600
      })
      const page = await context.newPage()
      const complaints = []
      page.on('console', message => {
        if (['error', 'warning'].includes(message.type())) complaints.push(message.text())
      })
      page.on('pageerror', error => complaints.push(String(error)))
      // The page may only send requests to its own server.
      page.on('request', request => {
        if (!request.url().startsWith(url) && !request.url().startsWith('data:')) complaints.push(`request: ${request.url()}`)
      })
      await page.goto(url)
      pages.set(as, { page, context, complaints })
      emit(as, 'opened')
    },
    fill: ({ as, selector, value }) => page(as).fill(selector, value),
    click: ({ as, selector }) => page(as).click(selector),
    type: ({ as, text }) => page(as).keyboard.type(text),
    async press ({ as, keys }) {
      for (const key of keys) await page(as).keyboard.press(key)
    },
    reload: ({ as }) => page(as).reload(),
    async picture ({ as, name }) {
      const file = path.join(folder, 'console', `${name}.png`)
      await page(as).screenshot({ path: file, fullPage: true })
      console.error(file)
    },
    async look ({ as }) {
      const { page, context, complaints } = pages.get(as)
      // Read the page first, so that cookies and storage are not older than the page.
      const seen = await page.evaluate(look)
      const kept = await page.evaluate(() => Object.keys(localStorage))
      const cookies = (await context.cookies()).map(cookie => cookie.name)
      emit(as, 'seen', { ...seen, cookies, kept, complaints })
    },
    async check ({ as }) {
      // Runs axe despite the page's policy, which allows no other scripts.
      await page(as).evaluate(axe)
      const { violations, passes } = await page(as).evaluate(() => window.axe.run({ resultTypes: ['violations'] }))
      emit(as, 'checked', {
        rules: passes.length,
        violations: violations.map(({ id, impact, help, nodes }) => ({ id, impact, help, nodes: nodes.map(node => node.html) }))
      })
    },
    async proxy ({ as, to, prefix }) {
      emit(as, 'proxied', { url: await proxy(to, prefix) })
    },
    async end () {
      await browser.close()
      emit('browser', 'ended')
    }
  }

  emit('browser', 'ready', { version: browser.version() })
  // Run commands one after the other, as a user would.
  let before = Promise.resolve()
  readline.createInterface({ input: process.stdin })
    .on('line', line => {
      const command = JSON.parse(line)
      before = before.then(() => commands[command.do](command))
        .then(() => { if (!['open', 'look', 'check', 'proxy', 'end'].includes(command.do)) emit(command.as, 'done') })
        .catch(error => fail(`${line}: ${error.stack}`))
    })
    .on('close', async () => {
      await browser.close()
      process.exit()
    })
}

main().catch(error => fail(error.stack))
