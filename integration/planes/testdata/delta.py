# A delta client from the package xds-protos: it does what the lines on its standard
# input say, JSON objects, and answers each with one.
import json
import queue
import sys

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.rpc import status_pb2

TYPE = "type.googleapis.com/weft.config.v1alpha1.Resource"


class Client:
    def open(self, addr, names, initial):
        self.requests = queue.Queue()
        self.channel = grpc.insecure_channel(addr)
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(self.channel)
        self.responses = stub.DeltaAggregatedResources(iter(self.requests.get, None))
        self.requests.put(discovery_pb2.DeltaDiscoveryRequest(
            node=base_pb2.Node(id="python"), type_url=TYPE, resource_names_subscribe=names, initial_resource_versions=initial))

    def recv(self):
        r = next(self.responses)
        self.nonce = r.nonce
        for one in r.resources:
            if one.resource.type_url != TYPE:
                raise ValueError(one.resource.type_url)
        return {"resources": {one.name: one.version for one in r.resources}, "removed": sorted(r.removed_resources), "version": r.system_version_info}

    def ack(self):
        self.requests.put(discovery_pb2.DeltaDiscoveryRequest(type_url=TYPE, response_nonce=self.nonce))

    def nack(self, message):
        self.requests.put(discovery_pb2.DeltaDiscoveryRequest(
            type_url=TYPE, response_nonce=self.nonce, error_detail=status_pb2.Status(code=3, message=message)))

    def close(self):
        self.requests.put(None)
        for _ in self.responses:
            raise ValueError("a response after the half-close")
        code = self.responses.code()
        self.channel.close()
        return {"code": code.name}


client = Client()
for line in sys.stdin:
    args = json.loads(line)
    answer = getattr(client, args.pop("do"))(**args)
    print(json.dumps(answer or {}), flush=True)
