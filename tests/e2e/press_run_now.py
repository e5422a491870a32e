"""Sign in to a dashboard and press 'Run now'. Runs inside a pod, which has no other client than this.

python -c "$(cat press_run_now.py)" URL TOKEN PATH
"""

import re
import sys

import httpx


def main(url: str, token: str, path: str) -> None:
    with httpx.Client(base_url=url, follow_redirects=True, timeout=60) as client:
        _send(client, "/sign-in", {"token": token})
        print(_send(client, path, {"force": "1"}))


def _send(client: httpx.Client, path: str, values: dict[str, str]) -> str:
    """Fill in the form of a page and send it. Gives the page that comes then."""
    form = re.search(r'name="csrf" value="([^"]+)"', client.get(path).raise_for_status().text)
    answer = client.post(path, data={**values, "csrf": form[1] if form else ""})
    return answer.raise_for_status().text


if __name__ == "__main__":
    main(*sys.argv[1:])
