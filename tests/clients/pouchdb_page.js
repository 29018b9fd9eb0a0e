'use strict'
// Runs the PouchDB recipe of the manual unchanged in headless Chromium for a test. The page has
// another origin than both servers, `PouchDB` is the bundle that apps load, and an import map
// replaces the URL in the recipe by that of the library under test.
//
//   node pouchdb_page.js FOLDER          FOLDER holds the browser's profile
//
// Reads commands from stdin and writes events to stdout, each a line of JSON. A profile outlives
// its page, as the data of an app do:
//
//   {"of":"browser","event":"ready","version":"…"}
//
//   {"do":"open","as":"a","recipe":"import Client from …","library":"http://…/howler.js","options":{…}}
//                                  options of the recipe's `startSync`
//   {"do":"write","as":"a","db":"garden","doc":{"_id":"x",…}}        writes to the local database
//   {"do":"find","as":"a","db":"garden","doc":{"_id":"x",…}}         waits for such a document there
//   {"do":"network","as":"a","offline":true}
//   {"do":"close","as":"a"}        {"do":"end"}
//
//   {"of":"a","event":"ack","to":"open"|"write"|"network"|"close"}        {"of":"a","event":"found","doc":{…}}
//   {"of":"a","event":"connect"|"ready"|"disconnect"|"resync"|"error","data":…}        events of the client,
//   {"of":"a","event":"change","db":"garden"}                                          that `startSync` returns

const fs = require('node:fs')
const http = require('node:http')
const readline = require('node:readline')

if (process.argv[2]) process.env.TMPDIR = process.argv[2]
const CHROMIUM = process.env.CHROMIUM || '/usr/bin/chromium'

/** URL from which the recipe imports the library. */
const LIBRARY = 'https://howler.example.com/howler.js'

function emit (of, event, more) {
  process.stdout.write(JSON.stringify({ of, event, ...more }) + '\n')
}

function fail (problem) {
  console.error(`tests/clients/pouchdb_page.js: ${problem}`)
  process.exit(1)
}

if (!fs.existsSync(CHROMIUM)) fail(`${CHROMIUM} is missing: install Debian's package chromium, or set CHROMIUM`)

function library (name) {
  try {
    return require.resolve(name)
  } catch (error) {
    fail(`${name} is missing (${error.code}): run tests/clients/install.sh`)
  }
}

const { chromium } = require(library('playwright-core'))
const bundle = fs.readFileSync(library('pouchdb/dist/pouchdb.min.js'))

// The web server of the apps, with a folder for each.
const apps = new Map()

const files = http.createServer((request, response) => {
  const [, name, file] = request.url.split('/')
  const app = apps.get(name)
  const send = (type, body) => {
    response.writeHead(200, { 'Content-Type': `${type}; charset=utf-8` })
    response.end(body)
  }
  if (!app) return response.writeHead(404).end()
  if (file === 'pouchdb.min.js') return send('text/javascript', bundle)
  if (file === 'recipe.js') return send('text/javascript', app.recipe)
  // Prevents the request for an icon, whose failure the browser would log in its console.
  send('text/html', `<!doctype html><link rel="icon" href="data:,"><script src="pouchdb.min.js"></script>
    <script type="importmap">${JSON.stringify({ imports: { [LIBRARY]: app.library } })}</script>`)
})

// Runs in the page and uses the recipe as an app does.
async function start (options) {
  /* global emit */
  const { startSync } = await import('./recipe.js')
  const client = startSync(options)
  for (const event of ['connect', 'ready', 'disconnect', 'resync']) {
    client.on(event, data => { emit(event, { data }) })
  }
  client.on('error', error => { emit('error', { data: String(error) }) })
  client.on('change', db => { emit('change', { db }) })
}

async function find ({ db, doc }) {
  /* global PouchDB */
  const database = new PouchDB(db)
  const matches = found => Object.keys(doc).every(key => JSON.stringify(found[key]) === JSON.stringify(doc[key]))
  for (;;) {
    const found = await database.get(doc._id).catch(() => ({}))
    if (matches(found)) return found
    await new Promise(resolve => setTimeout(resolve, 20))
  }
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
  const contexts = new Map()
  const pages = new Map()

  const commands = {
    async open ({ as, recipe, library, options }) {
      apps.set(as, { recipe, library })
      if (!contexts.has(as)) contexts.set(as, await browser.newContext())
      const page = await contexts.get(as).newPage()
      pages.set(as, page)
      // Uncaught errors fail the test. The console also logs failed requests, which are expected.
      page.on('pageerror', error => fail(`the page ${as}: ${error.stack || error}`))
      page.on('console', message => console.error(`${as}: ${message.text()}`))
      await page.exposeFunction('emit', (event, more) => emit(as, event, more))
      await page.goto(`${origin}/${as}/`)
      await page.evaluate(start, options)
    },
    async write ({ as, db, doc }) {
      await pages.get(as).evaluate(async ({ db, doc }) => {
        const database = new PouchDB(db)
        const before = await database.get(doc._id).catch(() => ({}))
        await database.put({ ...doc, _rev: before._rev })
      }, { db, doc })
    },
    async find ({ as, db, doc }) {
      emit(as, 'found', { doc: await pages.get(as).evaluate(find, { db, doc }) })
    },
    network: ({ as, offline }) => contexts.get(as).setOffline(offline),
    close: ({ as }) => pages.get(as).close({ runBeforeUnload: false }),
    end: () => browser.close()
  }

  emit('browser', 'ready', { version: browser.version() })
  // Run commands one after the other, so that a page exists before the next command for it.
  let before = Promise.resolve()
  readline.createInterface({ input: process.stdin })
    .on('line', line => {
      const command = JSON.parse(line)
      before = before.then(() => commands[command.do](command))
        .then(() => emit(command.as || 'browser', 'ack', { to: command.do, data: {} }))
        .catch(error => fail(`${line}: ${error.stack}`))
    })
    .on('close', async () => {
      await browser.close()
      process.exit()
    })
}

main().catch(error => fail(error.stack))
