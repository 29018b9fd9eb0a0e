'use strict'
// Drives the client library in headless Chromium for a test, on pages of another origin than the
// server's.
//
//   node howler_page.js FOLDER          FOLDER holds the browser's profile
//
// Commands and events are those of howler.js; every client has its own page and profile. Additional
// ones:
//
//   {"do":"open","as":"a"}          opens a page; {"library":"http://…/howler.js"} imports the library from there,
//                                   {"origin":"https://…"} makes it a page of the server's own origin
//   {"do":"reload","as":"a"}        reloads the page, which restarts the app
//   {"do":"offline","as":"a","is":true}           {"do":"page-event","as":"a","event":"online","on":"window"}
//   {"do":"hide","as":"a","is":true}              sets the visibility of the page
//   {"do":"cookies","as":"a"}       {"do":"complaints","as":"a"}       {"do":"close","as":"a"}       {"do":"end"}
//
//   {"of":"browser","event":"ready"}
//   {"of":"a","event":"opened"|"closed"}          {"of":"a","event":"cookies","cookies":[…]}
//   {"of":"a","event":"complaints","complaints":["messages of the console, and uncaught errors"]}

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
  console.error(`tests/clients/howler_page.js: ${problem}`)
  process.exit(1)
}

function library (name) {
  try {
    return require(name)
  } catch (error) {
    fail(`${name} is missing (${error.code}): run tests/clients/install.sh`)
  }
}

if (!fs.existsSync(CHROMIUM)) fail(`${CHROMIUM} is missing: install Debian's package chromium, or set CHROMIUM`)
const { chromium } = library('playwright-core')

const modules = {
  '/howler.js': path.join(__dirname, '../../src/web/howler.js'),
  '/howler_app.mjs': path.join(__dirname, 'howler_app.mjs')
}

// The page imports the client library from the URL in `library` of its query.
const page = `<!doctype html><link rel="icon" href="data:,"><script type="module">
  import { app } from '/howler_app.mjs'
  const library = new URLSearchParams(location.search).get('library') || '/howler.js'
  const { default: Client } = await import(library)
  window.commands = app(Client, (of, event, more) => window.emit(of, event, more))
</script>`

function file (path) {
  const source = modules[path]
  return source
    ? { contentType: 'text/javascript; charset=utf-8', body: fs.readFileSync(source) }
    : { contentType: 'text/html; charset=utf-8', body: page }
}

const files = http.createServer((request, response) => {
  const { contentType, body } = file(request.url)
  response.writeHead(200, { 'Content-Type': contentType }).end(body)
})

async function main () {
  const browser = await chromium.launch({
    executablePath: CHROMIUM,
    // Chromium would not let a page that this script fulfills send requests to this machine.
    args: [
      '--disable-features=LocalNetworkAccessChecks',
      '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync'
    ]
  }).catch(error => fail(`Chromium does not start: ${error.message}`))
  await new Promise(resolve => files.listen(0, '127.0.0.1', resolve))
  files.origin = `http://localhost:${files.address().port}`
  const pages = new Map()

  const commands = {
    async open ({ as, library, origin = files.origin }) {
      const context = await browser.newContext({ ignoreHTTPSErrors: true })
      const page = await context.newPage()
      const complaints = []
      page.on('console', message => {
        if (['error', 'warning'].includes(message.type())) complaints.push(message.text())
      })
      page.on('pageerror', error => complaints.push(String(error)))
      await page.exposeFunction('emit', emit)
      pages.set(as, { page, context, complaints })
      // Adds the app's files to those of the server, as a proxy would do.
      for (const path of origin === files.origin ? [] : ['/app', '/howler_app.mjs']) {
        await context.route(origin + path, route => route.fulfill(file(path)))
      }
      await page.goto(library ? `${origin}/app?library=${encodeURIComponent(library)}` : `${origin}/app`)
      await page.waitForFunction(() => window.commands)
      emit(as, 'opened')
    },
    async reload ({ as }) {
      const { page } = pages.get(as)
      await page.reload()
      await page.waitForFunction(() => window.commands)
      emit(as, 'opened')
    },
    offline: ({ as, is }) => pages.get(as).context.setOffline(is),
    'page-event': ({ as, event, on }) => pages.get(as).page.evaluate(([event, on]) => {
      window[on].dispatchEvent(new Event(event))
    }, [event, on]),
    hide: ({ as, is }) => pages.get(as).page.evaluate(is => {
      Object.defineProperty(document, 'visibilityState', { configurable: true, value: is ? 'hidden' : 'visible' })
      document.dispatchEvent(new Event('visibilitychange'))
    }, is),
    async cookies ({ as }) {
      emit(as, 'cookies', { cookies: await pages.get(as).context.cookies(), now: Date.now() / 1000 })
    },
    complaints: ({ as }) => emit(as, 'complaints', { complaints: pages.get(as).complaints }),
    async close ({ as }) {
      await pages.get(as).context.close()
      pages.delete(as)
      emit(as, 'closed')
    },
    async end () {
      await browser.close()
      emit('browser', 'ended')
    }
  }

  async function run (command) {
    if (commands[command.do]) return commands[command.do](command)
    return pages.get(command.as).page.evaluate(command => { window.commands[command.do](command) }, command)
  }

  emit('browser', 'ready')
  // Run commands one after the other, so that a page exists before the next command for it.
  let before = Promise.resolve()
  readline.createInterface({ input: process.stdin })
    .on('line', line => {
      before = before.then(() => run(JSON.parse(line))).catch(error => fail(`${line}: ${error.stack}`))
    })
    .on('close', async () => {
      await browser.close()
      process.exit()
    })
}

main().catch(error => fail(error.stack))
