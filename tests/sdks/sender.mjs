// Sends events with a posthog-node of today or of 2024, and says what it believes delivered.
//
//     node sender.mjs PACKAGE '{"host": …, "token": …, "events": …, "options": {…}}'
//
// The SDK tells of errors without the events they concern, but it asks the network through its
// option `fetch`. It takes a batch out of its queue when the answer is a success, so the wrapper
// notes what such an answer's request held; of capture v1 what the answer's results call kept.
// A line "half" goes out when half of the events are captured, and the second half waits for a
// line on stdin; the last line is JSON.

import { createInterface } from 'node:readline'
import { gunzipSync } from 'node:zlib'

const [packageName, argument] = process.argv.slice(2)
const { host, token, events, options } = JSON.parse(argument)
const { PostHog } = await import(packageName)

const numbers = new Map() // uuid → n
const believed = new Set()
const errors = []

async function tellingFetch(url, request) {
    const response = await fetch(url, request)
    const path = new URL(url).pathname
    if (response.ok && (path.startsWith('/batch') || path.startsWith('/i/v'))) {
        const { batch } = JSON.parse(await text(request.body))
        const results = path.startsWith('/i/v1') ? (await response.clone().json()).results : null
        for (const { uuid, properties } of batch) {
            numbers.set(uuid, properties.n)
            const result = results ? results[uuid]?.result : 'ok'
            if (result === 'ok' || result === 'warning') believed.add(properties.n)
        }
    }
    return response
}

async function text(body) {
    if (typeof body === 'string') return body
    const bytes = Buffer.from(await new Response(body).arrayBuffer())
    return (bytes[0] === 0x1f ? gunzipSync(bytes) : bytes).toString()
}

const client = new PostHog(token, { host, fetch: tellingFetch, maxQueueSize: events, ...options })
client.on('error', (error) => errors.push(String(error)))

function send(from, to) {
    for (let n = from; n < to; n++) {
        const properties = { n, text: 'é\u2028'.repeat(20) }
        client.capture({ distinctId: `p${n % 50}`, event: 'tick', properties })
    }
}

const awake = setInterval(() => {}, 1000) // the SDK's own timers let the process end
send(0, events / 2)
console.log('half')
const stdin = createInterface({ input: process.stdin })
await new Promise((resolve) => stdin.once('line', resolve))
stdin.close()
send(events / 2, events)
for (let left = 60; believed.size < events && left > 0; left--) {
    await client.flush().catch(() => {}) // it says so with an error event, too
    await new Promise((resolve) => setTimeout(resolve, 200))
}
await client.shutdown(10_000)
clearInterval(awake)
console.log(JSON.stringify({ believed: [...believed], uuids: numbers.size, errors }))
