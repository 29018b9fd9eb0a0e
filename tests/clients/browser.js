'use strict'
// Drives the browser bundles of socket.io-client in headless Chromium for a test. Like those of
// apps, the pages have another origin than the server.
//
//   node browser.js FOLDER          FOLDER holds the browser's profile
//
// Reads commands from stdin and writes events to stdout, each a line of JSON. The first event gives
// the origin of the pages. Every command names its page in `as`, every other event in `of`:
//
//   {"of":"browser","event":"ready","origin":"http://localhost:…","version":"…"}
//
//   {"do":"open","as":"a","library":"sio2","url":"http://…","options":{…}}      options of the library
//   {"do":"subscribe"|"unsubscribe","as":"a","dbs":["db"]}     {"do":"heartbeat"|"log-out","as":"a"}
//   {"do":"fetch","as":"a","library":"sio2","url":"http://…","options":{…}}     options of fetch
//   {"do":"report","as":"a"}        {"do":"close","as":"a"}        {"do":"end"}
//
//   {"of":"a","event":"connect"|"connect_error"|"upgraded"|"not-authenticated"|"disconnect", …}
//   {"of":"a","event":"authenticated","data":{…},"transport":"websocket"}
//   {"of":"a","event":"ack","to":"subscribe","data":{…}}        {"of":"a","event":"change","db":"db"}
//   {"of":"a","event":"fetched","status":400,"body":"…"}        {"of":"a","event":"closed"}
//   {"of":"a","event":"report","requests":{"GET":3,"POST":2},"versions":["HTTP/1.1"],"with_cookie":4,
//    "websockets":1,"cookies":["io"],"complaints":["messages of the console, and uncaught errors"]}

const fs = require('node:fs')
const http = require('node:http')
const path = require('node:path')
const readline = require('node:readline')

if (process.argv[2]) process.env.TMPDIR = process.argv[2]
const CHROMIUM = process.env.CHROMIUM || '/usr/bin/chromium'

function emit (of, event, more) {
  process.stdout.write(JSON.stringify({ of, event, ...more }) + '\n')
}

function fail (problem) {
  console.error(`tests/clients/browser.js: ${problem}`)
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

// The file server: a page for every library, and the bundle that its documentation recommends.
const bundles = { sio2: 'dist/socket.io.js', sio4: 'dist/socket.io.min.js' }

const files = http.createServer((request, response) => {
  const [name, extension] = request.url.slice(1).split('.')
  if (!(name in bundles)) return response.writeHead(404).end()
  if (extension === 'js') {
    const folder = path.join(__dirname, 'node_modules', name)
    response.writeHead(200, { 'Content-Type': 'text/javascript; charset=utf-8' })
    return response.end(fs.readFileSync(path.join(folder, bundles[name])))
  }
  response.writeHead(200, { 'Content-Type': 'text/html; charset=utf-8' })
  // Prevents the request for an icon, whose failure the browser would log in its console.
  response.end(`<!doctype html><link rel="icon" href="data:,"><script src="/${name}.js"></script>`)
})

// The app, which runs in the page.
function app ({ url, options }) {
  /* global io, emit */
  const socket = window.socket = io(url, { forceNew: true, reconnection: false, ...options })
  socket.on('connect', () => {
    emit('connect')
    const engine = socket.io.engine
    const upgraded = () => emit('upgraded', { transport: engine.transport.name })
    // Version 4 of the library may upgrade before the server has answered its CONNECT.
    if (engine.transport.name === 'websocket') upgraded()
    else engine.once('upgrade', upgraded)
  })
  socket.on('connect_error', error => emit('connect_error', { message: String(error) }))
  socket.on('authenticated', data => emit('authenticated', { data, transport: socket.io.engine.transport.name }))
  socket.on('not-authenticated', data => emit('not-authenticated', { data }))
  socket.on('change', db => emit('change', { db, transport: socket.io.engine.transport.name }))
  socket.on('disconnect', reason => emit('disconnect', { reason }))
}

function ask ({ event, argument }) {
  window.socket.emit(event, argument, data => emit('ack', { to: event, data }))
}

async function main () {
  const browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: [
      '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync'
    ]
  }).catch(error => fail(`Chromium does not start: ${error.message}`))
  await new Promise(resolve => files.listen(0, '127.0.0.1', resolve))
  const origin = `http://localhost:${files.address().port}`
  const pages = new Map()

  // Opens a page with its own profile and loads the library.
  async function load (as, name, server) {
    const context = await browser.newContext({ ignoreHTTPSErrors: true })
    const page = await context.newPage()
    const seen = { requests: {}, versions: [], with_cookie: 0, websockets: 0, complaints: [] }
    page.on('console', message => {
      if (['error', 'warning'].includes(message.type())) seen.complaints.push(message.text())
    })
    page.on('pageerror', error => seen.complaints.push(String(error)))
    page.on('websocket', () => { seen.websockets++ })
    page.on('request', request => {
      if (!request.url().startsWith(server)) return
      seen.requests[request.method()] = (seen.requests[request.method()] || 0) + 1
      request.allHeaders().then(headers => { if ('cookie' in headers) seen.with_cookie++ }, () => {})
    })
    page.on('response', response => {
      if (!response.url().startsWith(server)) return
      response.httpVersion().then(version => {
        if (!seen.versions.includes(version)) seen.versions.push(version)
      }, () => {})
    })
    await page.exposeFunction('emit', (event, more) => emit(as, event, more))
    await page.goto(`${origin}/${name}`)
    const loaded = { page, context, seen, server }
    pages.set(as, loaded)
    return loaded
  }

  const commands = {
    async open ({ as, library, url, options }) {
      const { page } = await load(as, library, url)
      await page.evaluate(app, { url, options })
    },
    subscribe: ({ as, dbs }) => pages.get(as).page.evaluate(ask, { event: 'subscribe', argument: dbs }),
    unsubscribe: ({ as, dbs }) => pages.get(as).page.evaluate(ask, { event: 'unsubscribe', argument: dbs }),
    heartbeat: ({ as }) => pages.get(as).page.evaluate(ask, { event: 'heartbeat', argument: null }),
    'log-out': ({ as }) => pages.get(as).page.evaluate(ask, { event: 'log-out', argument: null }),
    async fetch ({ as, library, url, options }) {
      const { page } = pages.get(as) || await load(as, library, url)
      const answer = await page.evaluate(async ([url, options]) => {
        const response = await fetch(url, options).catch(error => error)
        if (response instanceof Error) return { error: String(response) }
        return { status: response.status, body: await response.text() }
      }, [url, options])
      emit(as, 'fetched', answer)
    },
    async report ({ as }) {
      const { context, seen, server } = pages.get(as)
      const cookies = await context.cookies(server)
      emit(as, 'report', { ...seen, cookies: cookies.map(cookie => cookie.name) })
    },
    async close ({ as }) {
      const { page, context } = pages.get(as)
      await page.close({ runBeforeUnload: false })
      await context.close()
      pages.delete(as)
      emit(as, 'closed')
    },
    async end () {
      await browser.close()
      emit('browser', 'ended')
    }
  }

  emit('browser', 'ready', { origin, version: browser.version() })
  // Run commands one after the other, so that a page exists before the next command for it.
  let before = Promise.resolve()
  readline.createInterface({ input: process.stdin })
    .on('line', line => {
      const command = JSON.parse(line)
      before = before.then(() => commands[command.do](command))
        .catch(error => fail(`${line}: ${error.stack}`))
    })
    .on('close', async () => {
      await browser.close()
      process.exit()
    })
}

main().catch(error => fail(error.stack))
