-- wrk's script: posts ready-made bodies in turn, and prints what came of it as one line of JSON.
-- Arguments: a folder of numbered bodies, how many, the path, and 1 when they are gzipped.

local requests, at = {}, 0

function init(args)
  local folder, count, path, gzipped = args[1], tonumber(args[2]), args[3], args[4] == "1"
  local headers = {
    ["Content-Type"] = "application/json",
    ["User-Agent"] = "posthog-python/6.7.5",
  }
  if gzipped then headers["Content-Encoding"] = "gzip" end
  for number = 1, count do
    local file = assert(io.open(folder .. "/" .. number, "rb"))
    requests[number] = wrk.format("POST", path, headers, file:read("*a"))
    file:close()
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%.6f,"p50_ms":%.3f,"p99_ms":%.3f,' ..
      '"refused":%d,"broken":%d,"timed_out":%d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write, errors.timeout
  ))
end
