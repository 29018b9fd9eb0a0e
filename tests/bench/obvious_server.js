// The same service in the obvious way, on Node.js and socket.io 2: one room per database. It serves
// only as a comparison for the benchmark (`cargo bench -- --node`).
//
//     node obvious_server.js http://admin:password@host:port
'use strict'

const http = require('http')
const path = require('path')
const socketIo = require(path.join(__dirname, '../clients/node_modules/socket.io-v2-server'))

const couchdb = new URL(process.argv[2])
const admin = 'Basic ' + Buffer.from(`${couchdb.username}:${couchdb.password}`).toString('base64')
const agent = new http.Agent({ keepAlive: true, maxSockets: 8 })

const server = http.createServer()
const io = socketIo(server, { serveClient: false })

function logIn ({ username, password }, callback) {
  const body = JSON.stringify({ name: username, password })
  const headers = { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) }
  const options = { host: couchdb.hostname, port: couchdb.port, path: '/_session', method: 'POST', agent, headers }
  http.request(options, response => {
    response.resume()
    const [cookie] = response.headers['set-cookie'] || []
    response.on('end', () => callback(response.statusCode === 200 ? cookie : null))
  }).end(body)
}

io.on('connection', socket => {
  socket.on('subscribe', (names, acknowledge) => socket.join(names, () => acknowledge({})))
  socket.on('unsubscribe', (names, acknowledge) => {
    names.forEach(name => socket.leave(name))
    acknowledge({})
  })
  logIn(socket.handshake.query, cookie => {
    if (cookie) return socket.emit('authenticated', { cookie })
    socket.emit('not-authenticated', { error: true })
    socket.disconnect()
  })
})

function follow () {
  const target = '/_global_changes/_changes?feed=continuous&heartbeat=10000&since=now'
  const options = { host: couchdb.hostname, port: couchdb.port, path: target, headers: { Authorization: admin } }
  http.get(options, response => {
    let begun = ''
    response.setEncoding('utf8')
    response.on('data', text => {
      const lines = (begun + text).split('\n')
      begun = lines.pop()
      for (const line of lines) {
        if (!line) continue
        const { id } = JSON.parse(line)
        const colon = id.indexOf(':')
        const name = id.slice(colon + 1)
        if (colon > 0) io.to(name).emit('change', name)
      }
    })
    response.on('end', () => process.exit(1))
  })
}

server.listen(0, '0.0.0.0', 511, () => {
  const { address, port } = server.address()
  console.error(`obvious server listens on ${address}:${port} (http)`)
  follow()
})
