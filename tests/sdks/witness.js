// Stands in a page before posthog-js and notes what the page itself hears of its requests.
//
// posthog-js takes a batch for delivered when its answer is a 200 (of a beacon it hears nothing),
// and asks the network through fetch or, in older generations, XMLHttpRequest.

window.witness = { delivered: [], beacons: [] }

const isCapture = (url) => /\/(e|batch|capture|track|i\/v0\/e)\/?$/.test(new URL(url, location).pathname)

const realFetch = window.fetch
window.fetch = async (url, request = {}) => {
    const response = await realFetch(url, request)
    if (isCapture(url) && response.status === 200) witness.delivered.push(request.body)
    return response
}

const { open, send } = XMLHttpRequest.prototype
XMLHttpRequest.prototype.open = function (method, url, ...rest) {
    this.witnessed = url
    return open.call(this, method, url, ...rest)
}
XMLHttpRequest.prototype.send = function (body) {
    this.addEventListener('load', () => {
        if (isCapture(this.witnessed) && this.status === 200) witness.delivered.push(body)
    })
    return send.call(this, body)
}

const realBeacon = navigator.sendBeacon
navigator.sendBeacon = function (url, body) {
    const queued = realBeacon.call(navigator, url, body)
    if (queued && isCapture(url)) witness.beacons.push(body)
    return queued
}

async function textOf(body) {
    let bytes = new Uint8Array(await new Response(body).arrayBuffer())
    if (bytes[0] === 0x1f && bytes[1] === 0x8b) {
        const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))
        bytes = new Uint8Array(await new Response(stream).arrayBuffer())
    }
    const text = new TextDecoder().decode(bytes)
    if (!text.startsWith('data=')) return text
    const packed = decodeURIComponent(text.slice('data='.length).split('&')[0])
    return new TextDecoder().decode(Uint8Array.from(atob(packed), (sign) => sign.charCodeAt(0)))
}

// The numbers of the events in these requests.
witness.numbers = async (bodies) => {
    const found = new Set()
    for (const body of bodies) {
        const content = JSON.parse(await textOf(body))
        const events = Array.isArray(content) ? content : (content.batch ?? [content])
        for (const event of events) if ('n' in event.properties) found.add(event.properties.n)
    }
    return [...found]
}

// Captures so many events, some at a time so that they go out in many requests.
witness.capture = async (events, at_once = 50, pause_ms = 60) => {
    for (let n = 0; n < events; n++) {
        posthog.capture('tick', { n, text: 'é\u2028' })
        if (n % at_once === at_once - 1) await new Promise((go) => setTimeout(go, pause_ms))
    }
}
